"""The random words: the compiled op against the reference; what an address may be."""

import pytest
import torch
from test_relation_cuda import emulated, run  # noqa: F401  (fixtures: the CUDA kernel, on a GPU or emulated)
from torch.testing import assert_close

from shamisa import ops
from shamisa.randomness import derive_key, words
from shamisa.reference import philox

KEYS = torch.tensor([0, -1, 2**63 - 1, -(2**63), 12345])
op = torch.ops.shamisa.philox


@pytest.mark.parametrize("domain", [philox.DOMAIN_PIXEL, philox.DOMAIN_PHOTO])
def test_equals_the_reference(domain):
    address = (torch.arange(7).view(7, 1), torch.tensor([0, 1, 2**32 - 1, 2**32, -3]), 2**31)
    got, wanted = words(KEYS, *address, domain), philox.words(KEYS, *address, domain)
    assert len(got) == 4
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == (7, 5) and a.dtype == torch.int64
        assert_close(a, b, rtol=0, atol=0)
    got, wanted = (f(KEYS, *address, domain=domain) for f in (derive_key, philox.derive_key))
    assert_close(got, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (600,)], ids=str)
def test_cuda_equals_reference(run, shape):  # noqa: F811
    g = torch.Generator().manual_seed(1)
    address = [torch.randint(-(2**63), 2**63 - 1, shape, generator=g) for _ in range(4)]
    assert_close(run("philox", *address, 5), ops.TABLE["philox"](*address, 5), rtol=0, atol=0)


def test_shapes_and_strides():
    for shape in ((), (0,), (3, 4)):
        k = torch.full(shape, 9)
        assert op(k, k, k, k, 1).shape == (4, *shape)
    k = torch.arange(12).view(3, 4).T  # not contiguous
    assert_close(op(k, k, k, k, 2), op(*[k.contiguous()] * 4, 2), rtol=0, atol=0)


def test_opcheck():
    torch.library.opcheck(op.default, (KEYS, KEYS, KEYS, KEYS, 3))


@pytest.mark.parametrize("call", [op, ops.TABLE["philox"]], ids=["op", "reference"])
@pytest.mark.parametrize("place, name", list(enumerate(("key", "element", "draw", "extra"))))
def test_bad_arguments(call, place, name):
    for wrong in (torch.zeros(5), torch.zeros(4, dtype=torch.int64), torch.zeros(5, 1, dtype=torch.int64)):
        if place == 0 and wrong.dtype == torch.int64:
            continue  # the others are compared with it
        arguments = [KEYS, KEYS, KEYS, KEYS]
        arguments[place] = wrong
        with pytest.raises((ValueError, RuntimeError), match=f"{name}.* must be int64"):
            call(*arguments, 0)
