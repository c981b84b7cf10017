"""The engine's plans, their JSON, and the call against one ``shamisa.distort`` step at a time."""

import json

import pytest
import torch
from torch.testing import assert_close

from shamisa.distortions import DISTORTIONS, GROUPS, NAMES, severity_at, value_at
from shamisa.engine import IMAGENET_MEAN, IMAGENET_STD, DistortionEngine, Plan, distort, normalize

FIELDS = ("opcode", "severity", "value", "length", "varying", "key")
DETERMINISTIC = [n for n, r in DISTORTIONS.items() if not r.random and r.group != "compression"]


def same(a: Plan, b: Plan) -> bool:
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in FIELDS)


def references(B=2, V=3, size=48, seed=0):
    return torch.randint(
        0, 256, (B, V, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def test_plan_is_a_pure_function_of_seed_and_step():
    engine = DistortionEngine()
    torch.manual_seed(1)
    a = engine.sample(3, seed=5, step=7)
    torch.manual_seed(2)
    assert same(a, DistortionEngine().sample(3, seed=5, step=7))
    for other in (engine.sample(3, seed=6, step=7), engine.sample(3, seed=5, step=8)):
        assert not torch.equal(a.severity, other.severity)
    assert len(a.key[a.key != 0].unique()) > 100


def test_plan_of_a_rank_is_a_slice_of_the_global_plan():
    engine = DistortionEngine()
    whole, part = engine.sample(4, seed=1, step=2), engine.sample(2, seed=1, step=2, first_sample=2)
    for f in FIELDS:
        assert torch.equal(getattr(whole, f)[2:], getattr(part, f)), f


def test_structure_of_plans():
    plan = DistortionEngine().sample(200, seed=3)
    B, C, L, D = plan.shape
    assert (B, C, L, D) == (200, 4, 5, 7)
    group_of = torch.tensor([list(GROUPS).index(r.group) for r in DISTORTIONS.values()])
    for b in range(B):
        for c in range(C):
            m = int(plan.length[b, c])
            codes = plan.opcode[b, c, :m]
            assert group_of[codes].unique().numel() == m  # groups without replacement
            v = int(plan.varying[b, c])
            others = [d for d in range(m) if d != v]
            for field in (plan.severity, plan.value):
                assert (field[b, c, :, others] == field[b, c, :1, others]).all()  # one factor varies
            prefix, rest = plan.key[b, c, :, :v], plan.key[b, c, :, v:m]
            assert (prefix == prefix[:1]).all()
            assert all(rest[:, d].unique().numel() == L for d in range(m - v))
    counts = torch.bincount(plan.length.flatten(), minlength=8)[1:].double() / (B * C)
    assert_close(counts, torch.full((7,), 1 / 7, dtype=torch.float64), atol=0.05, rtol=0)
    used = torch.bincount(plan.opcode[plan.opcode >= 0], minlength=len(DISTORTIONS))
    assert (used > 0).all()
    assert_close((plan.varying_severity == 4).double().mean().item(), 0.1096, atol=0.03, rtol=0)  # P(|N(0,2.5)| > 4)


def test_integer_parameters_and_their_severity():
    for rounding in ("published", "minimal"):
        plan = DistortionEngine(rounding=rounding).sample(50, seed=1)
        code = plan.opcode.unsqueeze(2).expand(plan.severity.shape)
        active = code >= 0
        flags = [r.discrete if rounding == "minimal" else r.integer for r in DISTORTIONS.values()]
        rounded = active & torch.tensor(flags)[code.clamp(min=0)]
        assert (plan.value[rounded] == plan.value[rounded].round()).all()
        assert_close(plan.value[active].double(), value_at(plan.severity[active], code[active]), atol=2e-5, rtol=1e-5)


def test_value_and_severity_are_inverse():
    s = torch.linspace(0, 4, 41, dtype=torch.float64).expand(len(DISTORTIONS), 41)
    code = torch.arange(len(DISTORTIONS)).unsqueeze(1).expand(len(DISTORTIONS), 41)
    assert_close(severity_at(value_at(s, code), code), s, atol=1e-12, rtol=0)
    levels = torch.tensor([r.levels for r in DISTORTIONS.values()], dtype=torch.float64)
    assert torch.equal(
        value_at(
            torch.arange(5.0).expand(len(DISTORTIONS), 5),
            torch.arange(len(DISTORTIONS)).unsqueeze(1).expand(len(DISTORTIONS), 5),
        ),
        levels,
    )


def test_options_of_sampling():
    discrete = DistortionEngine(continuous=False).sample(20)
    assert (discrete.severity == discrete.severity.round()).all()
    uniform = DistortionEngine(severity="uniform").sample(200).varying_severity
    assert_close(uniform.mean().item(), 2.0, atol=0.1, rtol=0)
    fixed = DistortionEngine(order="fixed").sample(20)
    codes = torch.where(fixed.opcode < 0, 99, fixed.opcode)
    assert (codes.diff(dim=2) >= 0).all()  # the table is ordered by group
    single = DistortionEngine(max_distortions=1).sample(20)
    assert single.shape[3] == 1 and (single.length == 1).all()
    shared = DistortionEngine(noise="shared").sample(20)
    assert (shared.key == shared.key[:, :, :1]).all()
    few = DistortionEngine(distortions=["jpeg", "brighten"]).sample(20)
    assert few.shape[3] == 2 and set(few.opcode.unique().tolist()) <= {-1, NAMES.index("jpeg"), NAMES.index("brighten")}


def test_plan_survives_json():
    plan = DistortionEngine().sample(2, seed=-(2**63), step=2**32 - 1)
    text = plan.to_json()
    assert same(plan, Plan.from_json(text))
    json.loads(text)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.pop("key"), "must be a JSON object with"),
        (lambda c: c.update(format=2), "format must be 1"),
        (lambda c: c["opcode"][0][0].__setitem__(0, len(DISTORTIONS)), "opcode must lie in"),
        (lambda c: c["varying"][0].__setitem__(0, 7), "varying must lie in"),
        (lambda c: c["length"][0].__setitem__(0, 0), "length must lie in"),
        (lambda c: c["value"][0][0][0].__setitem__(0, float("nan")), "value of .* must lie in .*, got nan"),
        (lambda c: c["value"].pop(), r"value must be torch.float32 \[2, 4, 5, 7\]"),
        (lambda c: c["value"][0].pop(), "rectangular lists"),
        (lambda c: c["distortions"].pop(), "another table"),
    ],
)
def test_malformed_plans_are_refused(change, message):
    content = json.loads(DistortionEngine().sample(2).to_json())
    change(content)
    with pytest.raises(ValueError, match=message):
        Plan.from_json(json.dumps(content))


def test_text_that_is_no_json():
    with pytest.raises(ValueError, match="not JSON"):
        Plan.from_json("{")


@pytest.mark.parametrize("reuse", [False, True])
def test_chain_equals_single_steps(reuse):
    engine = DistortionEngine(compositions=2, levels=2, distortions=DETERMINISTIC, reuse_prefix=reuse)
    plan = engine.sample(2, seed=4)
    refs = references()
    x = engine(refs, plan, normalize=False)
    assert x.shape == (2, 3, 2, 2, 3, 48, 48)
    for b in range(2):
        for c in range(2):
            for level in range(2):
                step = refs[b].float() / 255
                for name, _, value in plan.recipe(b, c, level):
                    step = distort(step, name, value=value)
                assert torch.equal(x[b, :, c, level], step), (b, c, level)


def test_prefix_reuse_changes_nothing():
    names = [n for n, r in DISTORTIONS.items() if r.group != "compression"]
    with_reuse = DistortionEngine(compositions=3, levels=2, distortions=names)
    without = DistortionEngine(compositions=3, levels=2, distortions=names, reuse_prefix=False)
    plan, refs = with_reuse.sample(1, seed=8), references(1, 2, 64)
    assert torch.equal(with_reuse(refs, plan), without(refs, plan))


def test_prefix_has_one_realisation_and_views_have_their_own():
    engine = DistortionEngine(compositions=8, levels=2, distortions=["white_noise"])
    plan = engine.sample(1, seed=1)
    gray = torch.full((1, 2, 3, 32, 32), 128, dtype=torch.uint8)
    x = engine(gray, plan, normalize=False)
    assert not torch.equal(x[0, 0, 0, 0], x[0, 0, 0, 1])
    assert not torch.equal(x[0, 0, 0, 0], x[0, 1, 0, 0])
    shared = DistortionEngine(compositions=1, levels=3, distortions=["white_noise"], noise="shared")
    plan = shared.sample(1, seed=1)
    x = shared(gray, plan, normalize=False)[0, 0, 0] - 128 / 255
    scale = plan.value[0, 0, :, 0].sqrt().view(3, 1, 1, 1)
    assert_close(x[0] / scale[0], x[1] / scale[1], atol=1e-4, rtol=0)  # one noise, three strengths


def test_output_types_and_layout():
    engine = DistortionEngine(compositions=2, levels=2, distortions=["darken", "pixelate"])
    plan, refs = engine.sample(2), references()
    plain = engine(refs, plan, normalize=False)
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (IMAGENET_MEAN, IMAGENET_STD))
    normalised = engine(refs, plan)
    assert_close(normalised, (plain - mean) / std, atol=1e-6, rtol=1e-6)
    last = engine(refs, plan, memory_format=torch.channels_last)
    assert torch.equal(last, normalised) and last.flatten(0, 3).is_contiguous(memory_format=torch.channels_last)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(engine(refs, plan, dtype=dtype), normalised.to(dtype))
    eight = engine(refs, plan, normalize=False, dtype=torch.uint8)
    assert torch.equal(eight, (plain * 255 + 0.5).floor().to(torch.uint8))
    assert_close(normalize(refs), (refs.float() / 255 - mean) / std, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda e, p, r: e(r[0], p), ValueError, r"references must be \[B, V, 3, H, W\]"),
        (lambda e, p, r: e(r[:1], p), ValueError, "plan's batch size 2, got 1"),
        (lambda e, p, r: e(r, None), TypeError, "plan must be a shamisa.Plan"),
        (lambda e, p, r: e(r.numpy(), p), TypeError, "references must be a torch.Tensor"),
        (lambda e, p, r: e(r.long(), p), TypeError, "references must be uint8, float16, .* got torch.int64"),
        (lambda e, p, r: e(r, p, dtype="float32"), TypeError, "dtype must be a torch.dtype, got 'float32'"),
        (lambda e, p, r: e(r, p, dtype=torch.uint8), ValueError, "dtype must be floating when normalize"),
        (lambda e, p, r: e(r, p, backend="gpu"), ValueError, "backend must be"),
        (lambda e, p, r: e.sample(0), ValueError, "batch_size must be"),
        (lambda e, p, r: e.sample(1, step=-1), ValueError, "step must be"),
        (lambda e, p, r: e.sample(1, seed=1.5), ValueError, "seed must be"),
        (lambda e, p, r: DistortionEngine(levels=0), ValueError, "levels must be"),
        (lambda e, p, r: DistortionEngine(severity="normal"), ValueError, "severity must be one of"),
        (
            lambda e, p, r: DistortionEngine(distortions=["blur"]),
            ValueError,
            "distortions must name some of .*, got blur",
        ),
        (lambda e, p, r: DistortionEngine(max_distortions=8), ValueError, "max_distortions must be"),
    ],
)
def test_errors(call, error, message):
    engine = DistortionEngine(distortions=["darken"])
    with pytest.raises(error, match=message):
        call(engine, engine.sample(2), references())


def test_default_device_does_not_matter():
    engine, refs = DistortionEngine(compositions=2, levels=2), references(B=1, V=2)
    plan = engine.sample(1, seed=3)
    want = engine(refs, plan)
    with torch.device("meta"):
        assert same(DistortionEngine(compositions=2, levels=2).sample(1, seed=3), plan)
        assert torch.equal(engine(refs, Plan.from_json(plan.to_json())), want)


def test_call_and_distort_compile_to_one_graph():
    engine, refs = DistortionEngine(compositions=1, levels=2), references(B=1, V=2)
    plan = engine.sample(1)
    torch._dynamo.reset()
    call = torch.compile(lambda r, p: engine(r, p), fullgraph=True, backend="aot_eager")
    assert torch.equal(call(refs, plan), engine(refs, plan))
    one = torch.compile(lambda x: distort(x, "darken", severity=2.5), fullgraph=True, backend="aot_eager")
    assert torch.equal(one(refs[0]), distort(refs[0], "darken", severity=2.5))


def test_repr_says_what_was_chosen():
    assert "compositions=2" in repr(DistortionEngine(compositions=2)) and "distortions=all" in repr(DistortionEngine())
    assert "distortions=['jpeg']" in repr(DistortionEngine(distortions=["jpeg"]))


def test_too_small_images_are_named_whatever_the_device():
    """Before the op, which on a GPU cannot read the op codes; the meta device stands in for one."""
    engine = DistortionEngine(distortions=["color_block"])
    message = "images for color_block must be at least 32 x 32 pixels, got 20 x 20"
    with pytest.raises(ValueError, match=message):
        engine(references(size=20).to("meta"), engine.sample(2))
    with pytest.raises(ValueError, match=message):
        distort(references(size=20)[0].to("meta"), "color_block", severity=1)


def test_too_small_images_are_named():
    engine = DistortionEngine(distortions=["non_eccentricity_patch"])
    with pytest.raises(ValueError, match=r"non_eccentricity_patch.*48.*(40|\[40, 40\])"):
        engine(references(size=40), engine.sample(2))
