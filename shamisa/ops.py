"""The op table: every operator of the package, its schema, reference, fake kernel and autograd rule, stated once.

One op, one name, many backends. The schema stands here; the pure-PyTorch reference is its ``CompositeExplicitAutograd``
kernel; the compiled libraries ``_C`` (CPU) and ``_C_cuda`` only add kernels for their device. So a machine without a
compiler, a unit test and a GPU all call ``torch.ops.shamisa.NAME``.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from . import checks
from .reference import distort as reference_distort
from .reference import philox as reference_philox
from .reference import relations as reference_relations
from .reference import resize as reference_resize
from .reference.ranges import FAULT


class _Library(torch.library.Library):
    """Guards every autograd kernel: torch would take a derivative that the rule does not have for zero."""

    def impl(self, op_name, fn, dispatch_key="", **options) -> None:
        guard = dispatch_key == "Autograd"
        super().impl(op_name, _reverse_mode_only(op_name, fn) if guard else fn, dispatch_key, **options)


def _reverse_mode_only(name: str, kernel: Callable) -> Callable:
    """The autograd kernel, refusing tangents of forward mode and the gradient transforms of torch.func."""

    def guarded(keyset, *args):
        tensors = [x for x in args if isinstance(x, Tensor)]
        _refuse_tangents(name, tensors)
        if torch._C._are_functorch_transforms_active() and torch.is_grad_enabled():
            if any(x.requires_grad for x in tensors):
                raise RuntimeError(
                    f"shamisa::{name} cannot be differentiated by torch.func (grad, vjp, jacrev, ...): "
                    "use backward() or torch.autograd.grad"
                )
        return kernel(keyset, *args)

    return guarded


def _refuse_tangents(name: str, tensors: Sequence[Tensor]) -> None:
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise RuntimeError(
            f"shamisa::{name} has no forward-mode derivative (torch.func.jvp, jacfwd, torch.autograd.forward_ad): "
            "use reverse mode, backward() or torch.autograd.grad"
        )


_LIBRARY = _Library("shamisa", "DEF")
TABLE: dict[str, Callable] = {}  # op name -> its reference


def define(
    schema: str,
    *,
    reference: Callable,
    fake: Callable,
    backward: Callable | None = None,
    setup_context: Callable | None = None,
) -> None:
    """Add a row: schema, reference (any device), fake kernel, and for differentiable ops the autograd rule.

    A backward is an op of its own: ``backward`` calls it.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"shamisa::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        rule = _first_order(name, backward)
        torch.library.register_autograd(f"shamisa::{name}", rule, setup_context=setup_context, lib=_LIBRARY)
    TABLE[name] = reference


def _first_order(name: str, backward: Callable) -> Callable:
    """The rule, refusing create_graph=True and tangents: the backward ops have no derivative of either kind."""

    def rule(ctx, *grads):
        if torch.is_grad_enabled():
            raise RuntimeError(f"shamisa::{name} has first derivatives only: create_graph=True is not supported")
        _refuse_tangents(f"{name}_backward", [g for g in grads if g is not None])
        return backward(ctx, *grads)

    return rule


# ---- random words ----------------------------------------------------------------------------------------------------
def _philox_fake(key, element, draw, extra, domain):
    reference_philox.check_address(key, element, draw, extra, domain)
    return key.new_empty(4, *key.shape)


# int64 of one shape [...] -> four words of 32 bits each, int64 [4, ...]
define(
    "philox(Tensor key, Tensor element, Tensor draw, Tensor extra, int domain) -> Tensor",
    reference=reference_philox.stacked_words,
    fake=_philox_fake,
)


# ---- distortions -----------------------------------------------------------------------------------------------------
def _distort_fake(source, index, opcode, value, key, mean, std, dtype, channels_last):
    reference_distort.check_chain(source, index, opcode, value, key, mean, std, dtype)
    shape = (index.shape[0], 3, source.shape[2], source.shape[3])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=source.device, memory_format=layout)


# Chains of distortions, image by image: out[n] is source[index[n]] after opcode[n, 0], opcode[n, 1], ... (-1 does nothing).
#   source [S, 3, H, W] uint8 or floating; index [N] int64; opcode [N, D] int64; value [N, D] float32; key [N, D] int64,
#   one key per image and stage; mean, std: 3 numbers each, the output is (x - mean) / std; dtype uint8 (without mean and
#   std) or floating
define(
    "distort(Tensor source, Tensor index, Tensor opcode, Tensor value, Tensor key, float[]? mean, float[]? std, "
    "ScalarType dtype, bool channels_last) -> Tensor",
    reference=reference_distort.chain,
    fake=_distort_fake,
)


# ---- photographs -----------------------------------------------------------------------------------------------------
def _resize_fake(photo, top, bottom, left, right, height, width):
    reference_resize.check_resize(photo, top, bottom, left, right, height, width)
    return photo.new_empty(3, height, width)


define(
    "resize_bicubic(Tensor photo, float top, float bottom, float left, float right, int height, int width) -> Tensor",
    reference=reference_resize.resize_bicubic,
    fake=_resize_fake,
)


# ---- relations -------------------------------------------------------------------------------------------------------
# Edges are weight [M] and index [2, M] int64 (rows i, j), as many as the shapes alone say. Severity is that of
# the varying stage, [B, C, L]; nodes are numbered as in reference/relations.py, which says what each op computes.
def _edges_fake(count: Callable) -> Callable:
    def fake(severity, views, *options):
        M = count(*severity.shape, views, *options)
        weight = severity.new_empty(M, dtype=reference_relations.compute_dtype(severity))
        return weight, severity.new_empty(2, M, dtype=torch.int64)

    return fake


define(
    "structural_graph(Tensor severity, int views, str classes) -> (Tensor weight, Tensor index)",
    reference=reference_relations.structural_graph,
    fake=_edges_fake(lambda B, C, L, V, classes: B * C * L * len(reference_relations.structural_pairs(V, classes))),
)
define(
    "ref_dist_graph(Tensor severity, int views, str decay) -> (Tensor weight, Tensor index)",
    reference=reference_relations.ref_dist_graph,
    fake=_edges_fake(lambda B, C, L, V, decay: B * V * C * L),
)
define(
    "ref_ref_graph(Tensor severity, int views) -> (Tensor weight, Tensor index)",
    reference=reference_relations.ref_ref_graph,
    fake=_edges_fake(lambda B, C, L, V: B * V * (B * V - 1)),
)
define(
    "dist_dist_graph(Tensor severity, int views, int edges, bool per_sample, str decay) "
    "-> (Tensor weight, Tensor index)",
    reference=reference_relations.dist_dist_graph,
    fake=_edges_fake(lambda B, C, L, V, edges, per, decay: reference_relations.dist_dist_count(B, C, L, V, edges, per)),
)


def _knn_fake(h, k):
    neighbor = h.new_empty(len(h), k, dtype=torch.int64)
    distance = h.new_empty(len(h), k, dtype=reference_relations.compute_dtype(h))
    return distance, neighbor, torch.empty_like(neighbor, dtype=torch.bool)


def _knn_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], *output[:2])
    ctx.mark_non_differentiable(*output[1:])


def _knn_backward(ctx, grad, *_):
    return torch.ops.shamisa.knn_graph_backward(grad, *ctx.saved_tensors), None


define(
    "knn_graph(Tensor h, int k) -> (Tensor distance, Tensor neighbor, Tensor mutual)",
    reference=reference_relations.knn_graph,
    fake=_knn_fake,
    setup_context=_knn_context,
    backward=_knn_backward,
)
define(
    "knn_graph_backward(Tensor grad, Tensor h, Tensor distance, Tensor neighbor) -> Tensor",
    reference=reference_relations.knn_graph_backward,
    fake=lambda grad, h, distance, neighbor: torch.empty_like(h, memory_format=torch.contiguous_format),
)


def _logits_fake(h, anchors):
    dtype = reference_relations.compute_dtype(h)
    return h.new_empty(len(h), len(anchors), dtype=dtype), h.new_empty(len(h), dtype=dtype)


def _logits_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


define(
    "transport_logits(Tensor h, Tensor anchors) -> (Tensor logits, Tensor norm)",
    reference=reference_relations.transport_logits,
    fake=_logits_fake,
    setup_context=_logits_context,
    backward=lambda ctx, grad, _: torch.ops.shamisa.transport_logits_backward(grad, *ctx.saved_tensors),
)
define(
    "transport_logits_backward(Tensor grad, Tensor h, Tensor anchors, Tensor logits, Tensor norm) -> (Tensor, Tensor)",
    reference=reference_relations.transport_logits_backward,
    fake=lambda grad, h, anchors, *_: (h.new_empty(h.shape), anchors.new_empty(anchors.shape)),
)
define(
    "transport_codes(Tensor u, float temperature, int rounds) -> Tensor",
    reference=reference_relations.transport_codes,
    fake=lambda u, temperature, rounds: u.new_empty(u.shape, dtype=reference_relations.compute_dtype(u)),
)


def _transport_fake(log_p, edges, per_row, diagonal):
    M = reference_relations.transport_count(len(log_p), edges, per_row, diagonal)
    index = log_p.new_empty(2, M, dtype=torch.int64)
    weight = log_p.new_empty(M, dtype=reference_relations.compute_dtype(log_p))
    return weight, index, index.new_empty(2, 2)


def _transport_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], *output)
    ctx.mark_non_differentiable(*output[1:])


def _transport_backward(ctx, grad, *_):
    return torch.ops.shamisa.transport_graph_backward(grad, *ctx.saved_tensors), None, None, None


define(
    "transport_graph(Tensor log_p, int edges, bool per_row, bool diagonal) "
    "-> (Tensor weight, Tensor index, Tensor extreme)",
    reference=reference_relations.transport_graph,
    fake=_transport_fake,
    setup_context=_transport_context,
    backward=_transport_backward,
)
define(
    "transport_graph_backward(Tensor grad, Tensor log_p, Tensor weight, Tensor index, Tensor extreme) -> Tensor",
    reference=reference_relations.transport_graph_backward,
    fake=lambda grad, log_p, *_: torch.empty_like(log_p, memory_format=torch.contiguous_format),
)


def _merge_fake(weight, index, nodes):
    M = weight.numel()
    merged = weight.new_empty(M, dtype=reference_relations.compute_dtype(weight))
    return merged, index.new_empty(2, M), index.new_empty(M)


def _merge_context(ctx, inputs, output):
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(*output[1:])


def _merge_backward(ctx, grad, *_):
    return torch.ops.shamisa.merge_edges_backward(grad, *ctx.saved_tensors), None, None


define(
    "merge_edges(Tensor weight, Tensor index, int nodes) -> (Tensor weight, Tensor index, Tensor position)",
    reference=reference_relations.merge_edges,
    fake=_merge_fake,
    setup_context=_merge_context,
    backward=_merge_backward,
)
define(
    "merge_edges_backward(Tensor grad, Tensor position) -> Tensor",
    reference=reference_relations.merge_edges_backward,
    fake=lambda grad, position: grad.new_empty(position.shape),
)


def _pair_fake(z, weight, index):
    dtype = reference_relations.compute_dtype(z)
    return z.new_empty((), dtype=dtype), z.new_empty(index.shape[1], dtype=dtype)


def _pair_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _pair_backward(ctx, grad, _):
    dz, dw = torch.ops.shamisa.pair_cost_backward(grad, *ctx.saved_tensors)
    return dz, dw, None


define(
    "pair_cost(Tensor z, Tensor weight, Tensor index) -> (Tensor cost, Tensor squared)",
    reference=reference_relations.pair_cost,
    fake=_pair_fake,
    setup_context=_pair_context,
    backward=_pair_backward,
)
define(
    "pair_cost_backward(Tensor grad, Tensor z, Tensor weight, Tensor index, Tensor squared) -> (Tensor, Tensor)",
    reference=reference_relations.pair_cost_backward,
    fake=lambda grad, z, weight, index, squared: (z.new_empty(z.shape), weight.new_empty(weight.shape)),
)
define(
    "variance(Tensor x) -> Tensor",
    reference=reference_relations.variance,
    fake=lambda x: x.new_empty((), dtype=reference_relations.compute_dtype(x)),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    backward=lambda ctx, grad: torch.ops.shamisa.variance_backward(grad, *ctx.saved_tensors),
)
define(
    "variance_backward(Tensor grad, Tensor x) -> Tensor",
    reference=reference_relations.variance_backward,
    fake=lambda grad, x: x.new_empty(x.shape),
)


def _covariance_fake(x):
    m, dtype = min(x.shape), reference_relations.compute_dtype(x)
    return x.new_empty((), dtype=dtype), x.new_empty(m, m, dtype=dtype)


def _covariance_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


define(
    "covariance(Tensor x) -> (Tensor value, Tensor moment)",
    reference=reference_relations.covariance,
    fake=_covariance_fake,
    setup_context=_covariance_context,
    backward=lambda ctx, grad, _: torch.ops.shamisa.covariance_backward(grad, *ctx.saved_tensors),
)
define(
    "covariance_backward(Tensor grad, Tensor x, Tensor moment) -> Tensor",
    reference=reference_relations.covariance_backward,
    fake=lambda grad, x, moment: x.new_empty(x.shape),
)


# ---- backends --------------------------------------------------------------------------------------------------------
def _switched_off() -> bool:
    return os.environ.get("SHAMISA_NATIVE") == "0"


def _load_compiled() -> None:
    """Import the compiled libraries that were built; importing registers their kernels. SHAMISA_NATIVE=0 goes without."""
    if _switched_off():
        return
    for name, wanted in (("_C", True), ("_C_cuda", torch.version.cuda is not None)):
        if wanted and importlib.util.find_spec(f"{__package__}.{name}") is not None:
            importlib.import_module(f".{name}", __package__)


_load_compiled()


def has_kernel(op: str, device: str) -> bool:
    """Whether a compiled kernel of ``op`` for device type ``device`` ("cpu" or "cuda") is loaded."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"shamisa::{op}", {"cpu": "CPU", "cuda": "CUDA"}[device])


def backends() -> dict[str, tuple[str, ...]]:
    """What runs where: op name -> the backends it has, of "cpu", "cuda" and "reference"."""
    return {op: (*(d for d in ("cpu", "cuda") if has_kernel(op, d)), "reference") for op in TABLE}


def how_to_compile(device: str) -> str:
    """What gives device type ``device`` ("cpu" or "cuda") the kernels that it lacks, in words."""
    off = "unset SHAMISA_NATIVE, which is 0; where nothing was compiled, " if _switched_off() else ""
    toolkit = " and the CUDA toolkit of torch's CUDA version (SHAMISA_CUDA=1)" if device == "cuda" else ""
    return f"{off}run `pip install --no-build-isolation .` in the source folder with a C++ compiler{toolkit}"


class Reference(TorchDispatchMode):
    """Inside, every op of the package runs its pure-PyTorch reference, the backwards too."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        space, _, name = function._schema.name.partition("::")
        return (TABLE[name] if space == "shamisa" else function)(*args, **(kwargs or {}))


def backend_context(row: str) -> contextlib.AbstractContextManager:
    """The reference inside for row "reference", nothing for others."""
    return Reference() if row == "reference" else contextlib.nullcontext()


def run_distort(
    source: Tensor,
    index: Tensor,
    opcode: Tensor,
    value: Tensor,
    key: Tensor,
    *,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    backend: str = "auto",
) -> Tensor:
    """``torch.ops.shamisa.distort`` with a choice of backend ("auto", "native" or "reference"); shapes as in the table.

    Raises:
        ValueError: an unknown backend, what ``reference.distort.check_chain`` says, or floating images on the CPU that are
            not in 0..1 (``reference/ranges.py``).
        RuntimeError: ``backend="native"`` and no compiled kernel for the device.
    """
    reference_distort.check_chain(source, index, opcode, value, key, mean, std, dtype)
    return call_distort(
        source, index, opcode, value, key, mean=mean, std=std, dtype=dtype, channels_last=channels_last, backend=backend
    )


def call_distort(
    source: Tensor,
    index: Tensor,
    opcode: Tensor,
    value: Tensor,
    key: Tensor,
    *,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    backend: str = "auto",
) -> Tensor:
    """``run_distort`` without ``check_chain``, which takes longer than a small image: for arguments that were made correct."""
    checks.choice("backend", backend, ("auto", "native", "reference"))
    arguments = (source, index, opcode, value, key, mean, std, dtype, channels_last)
    if backend == "reference":
        return reference_distort.chain(*arguments)
    if backend == "native" and not has_kernel("distort", source.device.type):
        raise RuntimeError(
            f"backend='native' needs the compiled kernels for {source.device.type}, which this installation lacks: "
            + how_to_compile(source.device.type)
        )
    if torch.compiler.is_compiling():
        return torch.ops.shamisa.distort(*arguments)
    try:
        return torch.ops.shamisa.distort(*arguments)
    except RuntimeError as error:  # the only check of the kernels that is not made before
        if (fault := str(error).find(FAULT)) < 0:
            raise
        raise ValueError(str(error)[fault:].splitlines()[0]) from None
