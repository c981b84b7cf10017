"""Each distortion, chains and the whole engine: ours, the reference (an eager PyTorch chain), and what users would pick."""

from __future__ import annotations

import measure
import memory
import peers
import pytest
import torch
from measure import DEVICES, IS_REFERENCE, error, moments_error

from shamisa import DISTORTIONS, DistortionEngine, ops
from shamisa.engine import IMAGENET_MEAN, IMAGENET_STD, distort
from shamisa.reference.distort import FUNCTIONS
from shamisa.reference.philox import DOMAIN_IMAGE, derive_key

SIZE = 224
PASS = 2 * 3 * SIZE * SIZE * 4  # bytes of one float32 image read and written


def batch(photos, device: str, who: str) -> torch.Tensor:
    """Float images in 0..1: four on the CPU, on a GPU enough to fill it, fewer where Python would take seconds."""
    images = photos[:4].float() / 255
    return images if device == "cpu" else images.repeat(64 if who == "native" else 8, 1, 1, 1).to(device)


def rows_of(name: str) -> list[str]:
    # torch.compile needs many minutes for the loops of jpeg2000
    compiled = ["compiled"] if name != "jpeg2000" else []
    return [
        "native",
        "reference",
        *compiled,
        "published",
        *(library for library, has in peers.HAVE.items() if name in has),
    ]


def need_kernel(device: str) -> None:
    if not ops.has_kernel("distort", device):
        pytest.skip(f"no compiled kernel for {device}")


def test_call(row):
    """What a call of ``distort`` costs before any pixel: part of every row below."""
    need_kernel("cpu")
    images = torch.rand(4, 3, 8, 8)
    call = lambda: distort(images, "darken", severity=2, backend="native")  # noqa: E731
    found = error(call(), distort(images, "darken", severity=2, backend="reference"))
    moved = 2 * measure.size_of(images)
    row(
        call,
        section="distortions",
        subject="(four images of 8 x 8, ms per call)",
        row="native",
        error=found,
        moved=moved,
    )


def compiled(name: str, images: torch.Tensor):
    """The reference of a distortion through torch.compile, with level 3 and the keys that ``distort`` gives.

    With the limits of what comes out. Ours and the reference also limit what goes in and look for NaN: nan_to_num would keep
    the compiler from vectorising.
    """
    value = torch.full((len(images),), float(DISTORTIONS[name].levels[2]), device=images.device)
    key = derive_key(torch.tensor(0), torch.arange(len(images)), domain=DOMAIN_IMAGE).to(images.device)
    torch._dynamo.reset()

    def whole(x, value, key):
        return FUNCTIONS[name](x, value, key).clamp(0, 1)

    function = torch.compile(whole, dynamic=False)
    return lambda: function(images, value, key)


@pytest.mark.parametrize("name, who", [(n, r) for n in DISTORTIONS for r in rows_of(n)])
@pytest.mark.parametrize("device", DEVICES)
def test_distortion(row, photos, device, name, who):
    """Level 3 (severity 2) on float images [N, 3, 224, 224]."""
    images, extra = batch(photos, device, who), {}
    value = DISTORTIONS[name].levels[2]
    if who in ("native", "reference"):
        if who == "native":
            need_kernel(device)
        call = lambda: distort(images, name, severity=2, backend=who)  # noqa: E731
    elif who == "compiled":
        call = compiled(name, images)
    else:
        try:
            if who == "published":
                one = peers.published(name)
                call = lambda: torch.stack([one(x, value).float() for x in images.cpu()]).to(device)  # noqa: E731
            else:
                function, same = peers.peer(who, name)
                call, extra["kin"] = lambda: function(images), not same
        except peers.Missing as missing:
            pytest.skip(str(missing))
    found = IS_REFERENCE
    if who != "reference":
        few = images[:4].cpu()
        got, wanted = call()[:4].cpu(), distort(few, name, severity=2, backend="reference")
        ours = who in ("native", "compiled")  # of the same random numbers
        found = error(got, wanted) if ours or not DISTORTIONS[name].random else moments_error(few, got, wanted)
    n = len(images)
    slow = who not in ("native", "compiled") and device == "cpu"
    row(
        call,
        section="distortions",
        subject=name,
        row=who,
        device=device,
        error=found,
        images=n,
        moved=n * PASS,
        seconds=0.2 if slow else 0.1,
        **extra,
    )


CHAINS = {
    "pointwise, 5 stages": (
        "darken",
        "color_saturation_hsv",
        "linear_contrast_up",
        "mean_shift_up",
        "nonlinear_contrast",
    ),
    "filters, 3 stages": ("gaussian_blur", "lens_blur", "high_sharpen"),
    "codecs, 2 stages": ("jpeg", "jpeg2000"),
    "one of each group, 7 stages": (
        *("lens_blur", "color_diffusion", "jpeg", "white_noise", "brighten", "jitter", "nonlinear_contrast"),
    ),
}


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("device", DEVICES)
def test_chain(row, photos, device, chain, backend):
    """One call for a whole chain at level 3: float images -> normalised float images."""
    if backend == "native":
        need_kernel(device)
    images = batch(photos, device, backend)
    n, D = len(images), len(CHAINS[chain])
    rows = [DISTORTIONS[name] for name in CHAINS[chain]]
    opcode = torch.tensor([r.opcode for r in rows], device=device).expand(n, D)
    value = torch.tensor([r.levels[2] for r in rows], device=device).expand(n, D)
    key = torch.arange(n * D, device=device).view(n, D)
    index = torch.arange(n, device=device)

    arguments, scale = (images, index, opcode, value, key), {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}

    def call():
        return ops.run_distort(*arguments, **scale, backend=backend)

    found = IS_REFERENCE
    if backend == "native":
        few = [t[:4].cpu() for t in arguments]
        found = error(call()[:4], ops.run_distort(*few, **scale, backend="reference"))
    row(
        call,
        section="chains",
        subject=chain,
        row=backend,
        device=device,
        error=found,
        images=n,
        moved=n * PASS,
        seconds=0.3,
    )


V, C, L, PLANS = 2, 4, 5, 4  # of the engine's rows: PLANS plans per call, each V C L = 40 distorted images


def plans_of(engine: DistortionEngine, B: int) -> list:
    return [engine.sample(B, seed=1, step=s) for s in range(PLANS)]


@pytest.mark.parametrize("who", ["native", "native, all threads", "reference", "reference, all threads", "published"])
def test_engine(row, photos, benchmark, who):
    """Published sampling, uint8 crops -> normalised float32: 160 distorted images of 4 plans, the same in every row."""
    engine = DistortionEngine()
    plans = plans_of(engine, 1) if benchmark.enabled else plans_of(engine, 1)[:1]
    references = photos[:V].unsqueeze(0)  # [1, V, 3, H, W]
    count = measure.all_threads() if who.endswith("all threads") else 1
    if count == 1 and who.endswith("all threads"):
        pytest.skip("one core")
    backend, extra = who.partition(",")[0], {}
    if backend == "published":
        try:
            call = published_engine(references, plans)
        except peers.Missing as missing:
            pytest.skip(str(missing))
    else:
        if backend == "native":
            need_kernel("cpu")
        call = lambda: [engine(references, plan, backend=backend) for plan in plans]  # noqa: E731
    if backend == "published":
        found = "another draw"
    elif who == "reference":
        found = IS_REFERENCE
    else:
        with measure.threads(count):
            got = engine(references, plans[0], backend=backend)
        found = error(got, engine(references, plans[0], backend="reference"))
    if count == 1 and backend != "published" and benchmark.enabled:
        extra = memory.peak_extra("engine", V=V, row=backend)
    images, seconds = len(plans) * V * C * L, 2.0 if backend == "native" else 8.0
    with measure.threads(count):
        row(
            call,
            section="engine",
            subject="engine",
            row=who,
            error=found,
            images=images,
            seconds=seconds,
            moved=images * PASS,
            **extra,
        )


def published_engine(references: torch.Tensor, plans: list):
    """The published functions driven by our plans, image by image, stages before the varying one once per composition."""
    functions = {row.opcode: peers.published(name) for name, row in DISTORTIONS.items()}
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (IMAGENET_MEAN, IMAGENET_STD))
    images = references[0].float() / 255

    def chain(x, plan, c, level, stages):
        for d in stages:
            x = functions[int(plan.opcode[0, c, d])](x, plan.value[0, c, level, d].item()).float().clamp(0, 1)
        return x

    def call():
        for plan in plans:
            for image in images:
                for c in range(C):
                    varying, length = int(plan.varying[0, c]), int(plan.length[0, c])
                    prefix = chain(image, plan, c, 0, range(varying))
                    [(chain(prefix, plan, c, k, range(varying, length)) - mean) / std for k in range(L)]

    return call


@pytest.mark.skipif("cuda" not in DEVICES, reason="no GPU")
@pytest.mark.parametrize("who", ["native", "native, bfloat16 channels_last"])
@pytest.mark.parametrize("B", [2, 16])
def test_engine_gpu(row, photos, B, who):
    """The same on a GPU: B samples of 6 views, so 120 B distorted images a plan."""
    need_kernel("cuda")
    engine = DistortionEngine()
    plans = [plan.to("cuda") for plan in plans_of(engine, B)]
    references = photos[:6].expand(B, 6, 3, SIZE, SIZE).contiguous().cuda()
    kind = {"dtype": torch.bfloat16, "memory_format": torch.channels_last} if "," in who else {}
    call = lambda: [engine(references, plan, **kind) for plan in plans]  # noqa: E731
    few = engine.sample(1, seed=1)
    got, wanted = engine(references[:1, :1], few, **kind), engine(references[:1, :1].cpu(), few, backend="reference")
    extra = {} if kind else memory.peak_extra("engine", B=B, V=6, device="cuda")
    images = PLANS * B * 6 * C * L
    row(
        call,
        section="engine",
        subject=f"engine, B = {B}",
        row=who,
        device="cuda",
        error=error(got, wanted),
        images=images,
        seconds=2.0,
        moved=images * PASS // (2 if kind else 1),
        **extra,
    )


@pytest.mark.parametrize("levels", [5, 10])
@pytest.mark.parametrize("compositions", [4, 8])
def test_engine_memory(row, benchmark, photos, compositions, levels):
    """Peak extra memory does not grow beyond output and prefix images: a figure per C and L."""
    need_kernel("cpu")
    if not benchmark.enabled and (compositions, levels) != (4, 5):
        pytest.skip("each in a process of its own: timed runs only")
    engine = DistortionEngine(compositions=compositions, levels=levels)
    plan, references = engine.sample(1, seed=1), photos[:1].unsqueeze(0)
    found = memory.peak_extra("engine", V=1, C=compositions, L=levels)
    images = compositions * levels
    row(
        lambda: engine(references, plan),
        section="memory",
        subject=f"engine, V = 1, C = {compositions}, L = {levels}",
        row="native",
        error=error(engine(references, plan), engine(references, plan, backend="reference")),
        images=images,
        moved=images * PASS,
        least=1,
        most=1,
        **found,
    )
