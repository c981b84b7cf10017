from __future__ import annotations

import pytest
import torch
from test_relation_cuda import emulated, run  # noqa: F401
from torch.testing import assert_close

import shamisa
from shamisa.ops import TABLE, has_kernel

op = torch.ops.shamisa.resize_bicubic
CASES = [  # rows, columns, rectangle, height, width
    (1, 1, (0, 1, 0, 1), 1, 1),
    (1, 9, (0, 1, 0, 9), 1, 4),
    (40, 52, (0, 40, 0, 52), 20, 26),
    (41, 33, (0, 41, 0, 33), 21, 17),
    (37, 64, (2.5, 31.25, 3.75, 60.0), 12, 31),
    (15, 16, (0, 15, 0, 16), 7, 8),  # about the 16 rows of a block
    (17, 200, (1, 17, 0.3, 199.1), 3, 5),
    (20, 20, (4, 9, 3, 8), 11, 13),  # larger
    (480, 472, (8, 456, 8, 456), 224, 224),
]


def photo(rows: int, columns: int, layout: str) -> torch.Tensor:
    """Noise of hard steps, so that sums leave 0..255; in the strides of a decoder, of planes, or of a part."""
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    x = torch.randint(0, 256, (rows + 2, columns + 3, 3), generator=generator, dtype=torch.uint8)
    x = torch.where(x < 90, 0, torch.where(x > 160, 255, x)).to(torch.uint8)
    x = x[1:-1, 2:-1].permute(2, 0, 1)
    return (
        x
        if layout == "interleaved part"
        else x.contiguous()
        if layout == "planes"
        else x.flip(0).transpose(1, 2).contiguous().transpose(1, 2)
    )


@pytest.mark.parametrize("layout", ["interleaved part", "planes", "transposed"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits_as_pillow(case, layout):
    rows, columns, rectangle, height, width = case
    x = photo(rows, columns, layout)
    before = x.clone()
    got, wanted = op(x, *rectangle, height, width), TABLE["resize_bicubic"](x, *rectangle, height, width)
    assert_close(got, wanted, rtol=0, atol=0)
    assert got.is_contiguous() and got.shape == (3, height, width)
    assert_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["interleaved part", "planes", "transposed"])
@pytest.mark.parametrize("case", CASES[:-1], ids=str)
def test_cuda_kernel_gives_the_same_bits(run, case, layout):  # noqa: F811
    rows, columns, rectangle, height, width = case
    x = photo(rows, columns, layout)
    wanted = TABLE["resize_bicubic"](x, *rectangle, height, width)
    assert_close(run("resize_bicubic", x, *map(float, rectangle), height, width), wanted, rtol=0, atol=0)


def test_cuda_kernel_on_wide_images(run):  # noqa: F811
    """More columns than one block of threads has."""
    x = photo(3, 700, "interleaved part")
    for arguments in ((x, 0.0, 3.0, 0.0, 700.0, 2, 350), (x, 0.5, 2.25, 99.5, 480.0, 3, 190)):
        assert_close(run("resize_bicubic", *arguments), TABLE["resize_bicubic"](*arguments), rtol=0, atol=0)


def test_opcheck():
    torch.library.opcheck(op, (photo(20, 24, "planes"), 0.0, 20.0, 1.5, 24.0, 10, 11))


def test_random_sizes():
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        rows, columns, height, width = torch.randint(1, 90, (4,), generator=generator).tolist()
        ends = torch.rand(4, generator=generator, dtype=torch.float64)
        top, left = (float(e * 0.4 * n) for e, n in zip(ends[:2], (rows, columns), strict=True))
        bottom, right = (float(n - e * 0.4 * n) for e, n in zip(ends[2:], (rows, columns), strict=True))
        arguments = (photo(rows, columns, "interleaved part"), top, bottom, left, right, height, width)
        assert_close(op(*arguments), TABLE["resize_bicubic"](*arguments), rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["op", "reference"])
def test_wrong_arguments(backend):
    call = op if backend == "op" else TABLE["resize_bicubic"]
    x = photo(8, 9, "planes")
    for arguments, message in (
        ((x.float(), 0, 8, 0, 9, 4, 4), "photo must be uint8"),
        ((x[:2], 0, 8, 0, 9, 4, 4), "photo must be uint8"),
        ((x[:, :0], 0, 8, 0, 9, 4, 4), "empty"),
        ((x, 0, 8.1, 0, 9, 4, 4), "the rectangle must lie in the photo"),
        ((x, 0, 8, 5, 5, 4, 4), "the rectangle must lie in the photo"),
        ((x, float("nan"), 8, 0, 9, 4, 4), "the rectangle must lie in the photo"),
        ((x, 0, 8, 0, 9, 0, 4), "height and width must lie in 1"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=message):
            call(*arguments)


def test_the_kernel_is_there():
    if not has_kernel("distort", "cpu"):
        pytest.skip("the extension is not built")
    assert "cpu" in shamisa.backends()["resize_bicubic"]
