"""The compiled chain: frame, layouts, levels of x86-64, checks, routing. (Each distortion against the reference:
``test_distort.py`` and ``test_codecs.py``; the core and the CUDA kernels without Python: ``tests/native``.)"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import shamisa
from shamisa import ops
from shamisa.distortions import DISTORTIONS, NAMES
from shamisa.reference.philox import DOMAIN_PIXEL, words

_host = pytest.importorskip("shamisa._host", reason="the extension is not built")
DEVICES = [
    pytest.param(d, marks=pytest.mark.skipif(d == "cuda" and not torch.cuda.is_available(), reason="no GPU"))
    for d in ("cpu", "cuda")
    if ops.has_kernel("distort", d)
]
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
EXACT = {"atol": 0, "rtol": 0}
ROWS = len(NAMES)
# bit-exact with the reference, so that the frame around them can be compared without a tolerance
PLAIN = ("darken", "mean_shift_up", "color_saturation_hsv", "quantization", "impulse_noise", "pixelate", "jpeg")


def batch(height: int = 37, width: int = 41, chains: int = 6, depth: int = 3) -> dict[str, Tensor]:
    """Arguments of the op: 3 uint8 sources, chains of PLAIN distortions with gaps."""
    g = torch.Generator().manual_seed(height * 1000 + width)
    source = torch.randint(0, 256, (3, 3, height, width), generator=g, dtype=torch.uint8)
    codes = torch.tensor([DISTORTIONS[n].opcode for n in PLAIN])
    opcode = codes[torch.randint(0, len(PLAIN), (chains, depth), generator=g)]
    opcode[torch.rand(chains, depth, generator=g) < 0.3] = -1
    low, high = (torch.tensor([getattr(r, k) for r in DISTORTIONS.values()]) for k in ("low", "high"))
    middle = (low + 0.3 * (high - low))[opcode]
    return {
        "source": source,
        "index": torch.randint(0, 3, (chains,), generator=g),
        "opcode": opcode,
        "value": middle,
        "key": torch.randint(-(2**62), 2**62, (chains, depth), generator=g),
    }


def run(arguments: dict[str, Tensor], device: str = "cpu", backend: str = "native", **options) -> Tensor:
    return ops.run_distort(**{k: t.to(device) for k, t in arguments.items()}, backend=backend, **options)


# ---- the table and its copy --------------------------------------------------------------------------------------------
def test_catalogue_is_the_table():
    catalogue = _host.catalogue()
    assert [row["name"] for row in catalogue] == list(NAMES)
    for got, row in zip(catalogue, DISTORTIONS.values(), strict=True):
        assert (got["discrete"], got["min_size"]) == (row.discrete, row.min_size)
        assert (got["low"], got["high"]) == (np.float32(row.low), np.float32(row.high))


def test_build_info():
    info = _host.build_info()
    assert info["version"] == shamisa.__version__
    assert info["level"] in info["levels"] == _host.levels()
    assert "-ffp-contract=off" in info["flags"]
    assert all(info[k] for k in ("commit", "compiler", "torch", "cuda"))


@pytest.mark.parametrize("level", _host.levels())
def test_philox_equals_the_reference(level):
    for key, element, draw in ((0, 0, 0), (-1, 2**32 - 1, 5), (2**62 + 12345, 77, 1)):
        wanted = [int(w) for w in words(torch.tensor(key), element, draw)]
        assert _host.philox(key, [element, draw, 0, DOMAIN_PIXEL], level) == wanted


# ---- levels ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_levels_give_the_same_bits(name):
    row = DISTORTIONS[name]
    rng = np.random.default_rng(5)
    for height, width in ((1, 1), (1, 50), (37, 41), (64, 96)):
        height, width = max(height, row.min_size), max(width, row.min_size)
        image = rng.random((3, height, width), dtype=np.float32)
        for value in (row.levels[1], row.levels[4]):
            first, *others = (_host.distort(image, row.opcode, value, -99, level) for level in _host.levels())
            for other in others:
                assert first.tobytes() == other.tobytes()


def test_level_can_be_forced():
    code = "from shamisa import _host; print(_host.build_info()['level'])"
    for level in (*_host.levels(), ""):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "SHAMISA_ISA": level}, capture_output=True, text=True
        )
        assert done.stdout.strip() == (level or _host.levels()[-1]), done.stderr
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "SHAMISA_ISA": "v9"}, capture_output=True, text=True
    )
    assert "SHAMISA_ISA must be one of" in done.stderr
    assert done.returncode != 0


def test_host_module_names_what_is_wrong():
    image = np.zeros((3, 8, 9), np.float32)
    with pytest.raises(ValueError, match=r"image must be \[3, H, W\].*got \[8, 9\]"):
        _host.distort(image[0], 0, 1.0)
    with pytest.raises(ValueError, match=f"opcode must lie in 0..{ROWS - 1}, got {ROWS}"):
        _host.distort(image, ROWS, 1.0)
    with pytest.raises(ValueError, match="images for color_block must be at least 32 x 32 pixels, got 8 x 9"):
        _host.distort(image, DISTORTIONS["color_block"].opcode, 1.0)
    with pytest.raises(ValueError, match="level must be one of .* got v1"):
        _host.distort(image, 0, 1.0, 0, "v1")


# ---- the frame -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (37, 41), (64, 64)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_outputs(device, size, channels_last, dtype):
    arguments = batch(*size)
    options = {"dtype": dtype, "channels_last": channels_last} | ({} if dtype == torch.uint8 else IMAGENET)
    got = run(arguments, device, **options)
    wanted = run(arguments, backend="reference", **options)
    assert got.dtype == dtype
    assert got.stride() == wanted.stride()
    assert_close(got.cpu(), wanted, **EXACT)


@pytest.mark.parametrize("device", DEVICES)
def test_inputs_of_every_dtype_and_layout(device):
    arguments = batch()
    wanted = run(arguments, backend="reference")
    source = arguments["source"]
    wide = torch.zeros(3, 3, 50, 90, dtype=torch.uint8)
    wide[:, :, 5:42, 3:85:2] = source
    layouts = {
        "channels_last": source.contiguous(memory_format=torch.channels_last),
        "crop with steps": wide[:, :, 5:42, 3:85:2],
        "transposed": source.transpose(2, 3).contiguous().transpose(2, 3),
        "float64": source.double() / 255,
        "float32": source.float() / 255,
    }
    for layout in layouts.values():
        given = {**arguments, "source": layout}
        kept = {k: t.clone() for k, t in given.items()}
        moved = {k: t.to(device) for k, t in given.items()}
        assert_close(ops.run_distort(**moved, backend="native").cpu(), wanted, **EXACT)
        for k, t in moved.items():
            assert_close(t.cpu(), kept[k], **EXACT)
    for dtype in (torch.float16, torch.bfloat16):
        given = {**arguments, "source": (source.double() / 255).to(dtype)}
        assert_close(run(given, device).cpu(), run(given, backend="reference"), **EXACT)
    # plan tensors that are not contiguous
    columns = {k: arguments[k].repeat_interleave(2, 1)[:, ::2] for k in ("opcode", "value", "key")}
    assert_close(run({**arguments, **columns}, device).cpu(), wanted, **EXACT)


@pytest.mark.parametrize("device", DEVICES)
def test_strange_samples(device):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.5, 1.5, 1e-42, 0.25, 1.0]).expand(1, 3, 4, 8)
    arguments = {
        "source": x,
        "index": torch.zeros(2, dtype=torch.int64),
        "opcode": torch.tensor([[-1], [DISTORTIONS["brighten"].opcode]]),
        "value": torch.full((2, 1), float("nan")),
        "key": torch.zeros(2, 1, dtype=torch.int64),
    }
    got, wanted = run(arguments, device).cpu(), run(arguments, backend="reference")
    assert_close(got, wanted, atol=5e-6, rtol=0)
    assert got.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_empty_batches(device):
    arguments = batch()
    none = {k: t if k == "source" else t[:0] for k, t in arguments.items()}
    assert run(none, device).shape == (0, 3, 37, 41)
    no_stage = {k: t[:, :0] if t.dim() == 2 else t for k, t in arguments.items()}
    wanted = arguments["source"][arguments["index"]].float() / 255
    assert_close(run(no_stage, device).cpu(), wanted, **EXACT)


@pytest.mark.skipif(not ops.has_kernel("distort", "cpu"), reason="the CPU kernels are not built")
def test_threads_change_nothing():
    arguments = batch(chains=9)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(arguments))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert_close(other, results[0], **EXACT)


MEASURE = """
import sys
import torch
from shamisa import _host, ops
from shamisa.distortions import DISTORTIONS

threads, chains, stages, size = map(int, sys.argv[1:])
torch.set_num_threads(threads)
codes = [DISTORTIONS[n].opcode for n in ("darken", "jitter", "jpeg")]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def call(N, D, size):
    opcode = torch.tensor(codes)[torch.arange(N * D).view(N, D) % len(codes)]
    value = torch.tensor([0.2, 0.5, 50.0])[torch.arange(N * D).view(N, D) % len(codes)]
    source = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    index = torch.zeros(N, dtype=torch.int64)
    before = resident()
    out = ops.run_distort(source, index, opcode, value, torch.zeros(N, D, dtype=torch.int64), backend="native")
    return resident() - before - out.numel() * 4

call(threads, 1, 8)  # starts the threads
print(call(chains, stages, size), _host.scratch_bytes(size, size, codes))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(not ops.has_kernel("distort", "cpu"), reason="the CPU kernels are not built")
@pytest.mark.parametrize(("threads", "chains", "stages"), [(1, 3, 3), (1, 24, 6), (2, 24, 3)])
def test_memory_beyond_the_output(threads, chains, stages):
    """A call takes its output and scratch_bytes per thread, however many and however long the chains are."""
    # blocks of more than 64 KiB then come from the system and go back to it
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    arguments = [str(n) for n in (threads, chains, stages, 384)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    extra, per_thread = map(int, done.stdout.split())
    assert per_thread < 70 * 384 * 384
    assert 0.5 * per_thread < extra < threads * per_thread + 2**21


def test_scratch_bytes():
    every = [row.opcode for row in DISTORTIONS.values()]
    for height, width in ((1, 1), (224, 224), (1, 4096), (2048, 2048)):
        each = [_host.scratch_bytes(height, width, [code]) for code in every]
        images = _host.scratch_bytes(height, width, [])
        assert 24 * height * width <= images <= 24 * height * width + 128
        assert _host.scratch_bytes(height, width, every) == max(each) > min(each) == images
    with pytest.raises(ValueError, match=r"sides of 1 to 2\^15 and at most 2\^26 pixels, got 0 x 5"):
        _host.scratch_bytes(0, 5, [])
    with pytest.raises(ValueError, match=f"opcodes must lie in 0..{ROWS - 1}, got {ROWS}"):
        _host.scratch_bytes(5, 5, [0, ROWS])


# ---- PyTorch's own checks --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(device, channels_last):
    arguments = [t.to(device) for t in batch(8, 9).values()]
    for mean, std, dtype in ((None, None, torch.uint8), (IMAGENET["mean"], IMAGENET["std"], torch.bfloat16)):
        torch.library.opcheck(torch.ops.shamisa.distort.default, (*arguments, mean, std, dtype, channels_last))


# ---- malformed input to the bare op ----------------------------------------------------------------------------------
BAD = [
    ("source", lambda t: t[0], r"source must be \[S, 3, H, W\]"),
    ("source", lambda t: t[:, :2], r"source must be \[S, 3, H, W\]"),
    ("source", lambda t: t.long(), "source must be uint8"),
    ("index", lambda t: t + 3, r"index must lie in 0\.\.2"),
    ("index", lambda t: t - 3, r"index must lie in 0\.\.2"),
    ("index", lambda t: t.int(), "index must be"),
    ("opcode", lambda t: t + ROWS, f"opcode must lie in -1..{ROWS - 1}"),
    ("opcode", lambda t: t - 40, r"opcode must lie in -1\.\.25"),
    ("opcode", lambda t: t[:-1], r"opcode must be \[N, D\] = \[6, D\], got \[5, 3\]"),
    ("value", lambda t: t[:, :2], r"value must be \[N, D\] = \[6, 3\], got \[6, 2\]"),
    ("value", lambda t: t.double(), "value must be"),
    ("key", lambda t: t[:, :2], r"key must be \[N, D\] = \[6, 3\], got \[6, 2\]"),
]


@pytest.mark.skipif(not ops.has_kernel("distort", "cpu"), reason="the CPU kernels are not built")
@pytest.mark.parametrize(("name", "change", "message"), BAD)
def test_the_bare_op_refuses(name, change, message):
    arguments = batch()
    arguments[name] = change(arguments[name])
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message) as told:
        torch.ops.shamisa.distort(*arguments.values(), None, None, torch.float32, False)
    assert " /" not in str(told.value)  # no folder of the machine that compiled it


@pytest.mark.skipif(not ops.has_kernel("distort", "cpu"), reason="the CPU kernels are not built")
def test_the_bare_op_refuses_options():
    arguments = batch(20, 20).values()
    with pytest.raises((RuntimeError, ValueError), match="mean and std must be given together"):
        torch.ops.shamisa.distort(*arguments, IMAGENET["mean"], None, torch.float32, False)
    with pytest.raises((RuntimeError, TypeError), match="dtype must be floating, or uint8 without mean and std"):
        torch.ops.shamisa.distort(*arguments, *IMAGENET.values(), torch.uint8, False)
    blocks = {**batch(20, 20), "opcode": torch.full((6, 3), DISTORTIONS["color_block"].opcode)}
    with pytest.raises((RuntimeError, ValueError), match="images for color_block must be at least 32 x 32 pixels"):
        torch.ops.shamisa.distort(*blocks.values(), None, None, torch.float32, False)


class Distorted(torch.utils.data.Dataset):
    """Item i: an image distorted by a chain with filters and a codec."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        blurred = shamisa.distort(image, "gaussian_blur", severity=3)
        return shamisa.distort(blurred, "jpeg2000", severity=2), torch.get_num_threads()


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_in_loader_workers(context):
    """Workers of either kind give the parent's images, also when the parent's threads have been at work before the fork."""
    wanted = [Distorted()[i][0] for i in range(6)]
    shamisa.distort(torch.rand(8, 3, 64, 64), "lens_blur", severity=3)
    loader = torch.utils.data.DataLoader(Distorted(), num_workers=2, multiprocessing_context=context, timeout=120)
    for (image, threads), expected in zip(loader, wanted, strict=True):
        assert torch.equal(image[0], expected) and int(threads) == 1


# ---- backends ---------------------------------------------------------------------------------------------------------
def test_native_without_kernels_says_how_to_build(monkeypatch):
    monkeypatch.setattr(ops, "has_kernel", lambda op, device: False)
    with pytest.raises(RuntimeError, match=r"backend='native' needs the compiled kernels for cpu.*pip install"):
        run(batch())
