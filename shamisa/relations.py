"""The objective: six relation graphs, merged by learned weights, drive a VICReg-like loss.

Constants are the published ones. Letters as in `functional`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from . import checks
from . import functional as SF
from .functional import RelationGraph
from .options import Options, setting, takes
from .reference.ranges import can_look, check_severity

COEFFICIENTS = {  # scale of each graph in the merged one; the order is that of the aggregator's input and output
    "structural": 0.6010794863656556,
    "ref_dist": 0.8038735892351129,
    "ref_ref": 0.5765695739376243,
    "dist_dist": 0.1789641360878255,
    "knn": 0.20874201442160423,
    "transport": 0.3670314792148166,
}
GRAPHS = tuple(COEFFICIENTS)
REGULARIZER_NODES = 126  # N of one sample with the published sizes: regularizer="normalized" divides by N / 126


@dataclass(frozen=True)
class RelationOptions(Options):
    """Everything that can be chosen about the objective; the defaults are the published choices.

    What each option means is its ``help``: ``print(shamisa.options.describe(RelationOptions))``, ``python -m shamisa.train
    --help``, and the page of the configuration.
    """

    graphs: tuple[str, ...] = setting(GRAPHS, "relation graphs in use, separated by commas", known=GRAPHS)
    anchors: int = setting(32, "K, number of anchors of the transport graph", low=2, high=65536)
    neighbors: int = setting(31, "k, nearest neighbours of each image in the kNN graph", low=1, high=65536)
    structural: str = setting(
        "parity",
        "which views the structural graph joins: same parity (published), same scale, or same reference",
        choices=SF.CLASSES,
    )
    decay: str = setting(
        "exponential",
        "edge weight for a severity gap g: exp(-3 g / 4) or 1 / (1 + g / 4)",
        choices=SF.DECAYS,
    )
    dist_dist_cap: str = setting(
        "batch",
        "whether dist-dist-edges counts per batch, or per sample (better for B > 2)",
        choices=("batch", "sample"),
    )
    transport_select: str = setting(
        "global",
        "transport edges kept: the largest of the whole matrix, or of each row",
        choices=("global", "row"),
    )
    transport_diagonal: bool = setting(
        True,
        "count the diagonal among the transport edges kept, although it is never used (published)",
    )
    dist_dist_edges: int = setting(
        4096,
        "edges of the dist-dist graph kept, as dist-dist-cap says. Ties for the last places go to the smaller node i, then j; "
        "the published code takes them in no stated order (effect on the total: 1e-5)",
        low=1,
        high=2**31,
    )
    transport_edges: int = setting(8, "transport edges kept per image", low=1, high=65536)
    alignment: bool = setting(True, "include the alignment term, which trains the anchors")
    binary: bool = setting(False, "give every edge weight 1 (no gradient through the graphs)")
    aggregation: str = setting(
        "detached",
        "graph weights: from a fixed random network (detached, published), a trained network, or equal",
        choices=("detached", "trained", "equal"),
    )
    regularizer: str = setting(
        "published",
        "edge regulariser: a sum over edges (published; the total can become negative), that divided by N / 126, or off",
        choices=("published", "normalized", "off"),
    )
    halves: str = setting(
        "published",
        "the two groups of rows for variance and covariance: first and second half (published), or by scale",
        choices=("published", "scale"),
    )
    code_temperature: float = setting(0.05, "temperature of the Sinkhorn codes", above=0)
    temperature: float = setting(0.1, "softmax temperature of the assignments to anchors", above=0)
    rounds: int = setting(6, "Sinkhorn iterations of the codes", low=1, high=1000)
    gather: bool = setting(
        False,
        "compute one objective over the samples of all processes, instead of averaging one per process",
    )
    alignment_weight: float = setting(0.49057801093072007, "weight of the alignment term", low=0)
    regularizer_weight: float = setting(0.03419084992354765, "weight of the edge regulariser", low=0)
    variance_weight: float = setting(11.975680785304435, "weight of the variance term", low=0)
    invariance_weight: float = setting(88.36882206311276, "weight of the invariance term", low=0)
    covariance_weight: float = setting(57.21249573027589, "weight of the covariance term", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.graphs:
            raise ValueError(f"graphs must name some of {', '.join(GRAPHS)}, got none")


def _make_anchors(features: int, count: int, device: str | None = None) -> nn.Linear:
    return nn.utils.parametrizations.weight_norm(nn.Linear(features, count, bias=False, device=device))


@dataclass
class RelationOutput:
    """What RelationLoss returns; all but the last two are scalars, and only `total` is meant to be differentiated.

    total = 11.98 variance + 88.37 invariance + 57.21 covariance; invariance = 2 (pair + transport + regularizer).

    Attributes:
        total, invariance, variance, covariance: scalars.
        pair: graph-weighted mean squared distance of embeddings.
        transport: alignment of anchor assignments with balanced codes, weighted.
        regularizer: - weight * sum of squared edge weights.
        mixture: [6] weight of each graph, in the order of GRAPHS; 0 for graphs that are off.
        graph: the merged graph, i < j, as edges (index [2, M], weight [M], dense()); weights detached.
    """

    total: Tensor
    invariance: Tensor
    variance: Tensor
    covariance: Tensor
    pair: Tensor
    transport: Tensor
    regularizer: Tensor
    mixture: Tensor
    graph: RelationGraph


# what a step logs and its curves show: the scalars above
TERMS = tuple(f.name for f in fields(RelationOutput) if f.name not in ("mixture", "graph"))


@takes(RelationOptions)
class RelationLoss(nn.Module):
    """Graph-weighted variance-invariance-covariance objective.

    Owns the anchors (`anchors`, a weight-normalised linear map without bias) and the aggregator that weighs the graphs
    (`aggregator`). `options` names every choice, see ``RelationOptions``; unknown names raise TypeError, unknown values
    ValueError. Unless aggregation="trained", the aggregator gets no gradient: call
    `loss.aggregator.requires_grad_(False)` before DistributedDataParallel. First derivatives only, in reverse mode. Saved
    with state_dict; it can also be copied and pickled.

    Args:
        feature_dim: F, the length of a row of h; at least 1, else ValueError.
        check_finite: NaN or infinity in z or h raises ValueError; this waits for the device in every step.
    """

    def __init__(self, feature_dim: int = 2048, check_finite: bool = False, **options) -> None:
        super().__init__()
        checks.integer("feature_dim", feature_dim, 1)
        self.check_finite = checks.flag("check_finite", check_finite)
        self.options = RelationOptions(**options)
        self._compared: set[tuple[int, ...]] = set()  # shapes that every rank has had, for gather
        self.anchors = _make_anchors(feature_dim, self.options.anchors)
        self.aggregator = nn.Sequential(
            nn.LayerNorm(2 * len(GRAPHS)),
            nn.Linear(2 * len(GRAPHS), 4 * len(GRAPHS)),
            nn.LayerNorm(4 * len(GRAPHS)),
            nn.PReLU(),
            nn.Linear(4 * len(GRAPHS), len(GRAPHS)),
        )

    def __getstate__(self) -> dict:
        """For pickle and copy: torch makes the class of a parametrised module as it runs, so only its parts can go."""
        state = super().__getstate__()
        return {**state, "_modules": {**state["_modules"], "anchors": self.anchors.parametrizations}}

    def __setstate__(self, state: dict) -> None:
        parts = state["_modules"]["anchors"]
        K, F = parts["weight"].original1.shape
        anchors = _make_anchors(F, K, device="meta")  # draws no random numbers
        anchors.parametrizations = parts
        super().__setstate__({**state, "_modules": {**state["_modules"], "anchors": anchors}})

    def forward(self, z_ref: Tensor, z_dist: Tensor, h_ref: Tensor, h_dist: Tensor, plan) -> RelationOutput:
        """The objective of one batch.

        With gather=True the samples of all ranks of torch.distributed, in the order of the ranks, are one batch: every
        rank returns the objective of the concatenated batch, with `graph` over all its nodes. Shapes must be the same on
        every rank. The ranks compare them before anything else is sent: on the CPU in every step; on a GPU, where that
        waits for the device, when a rank sees a shape for the first time (so a rank that alone changes B later is not
        noticed there); not inside torch.compile or a CUDA graph. Under DistributedDataParallel, which averages gradients
        over ranks, parameters get exactly the gradient of one process on the concatenated batch (see functional.gather;
        the encoder's batch normalisation needs SyncBatchNorm for that).

        Severities are looked at on the CPU, other values not, because on a GPU that would wait for the device: NaN in the
        inputs makes `total` NaN. The exception is h where no term is a function of it: alignment=False, and binary=True or neither knn nor transport.
        check_finite=True looks, outside torch.compile and CUDA graphs.

        Args:
            z_ref, z_dist: embeddings [B, V, E] and [B, V, C, L, E], floating point, not normalised.
            h_ref, h_dist: features [B, V, F] and [B, V, C, L, F], L2-normalised.
            plan: has severity [B, C, L, D] and varying [B, C], as the engine's Plan.

        Raises:
            ValueError: shapes that do not fit together, mixed devices, tensors that are not floating point, on the CPU severities
                outside 0..4 and a `varying` outside 0..D-1; with gather,
                shapes that differ between ranks; with check_finite, NaN or infinity, naming the tensor and how many.
            RuntimeError: gather=True without an initialised process group.
        """
        self._check(z_ref, z_dist, h_ref, h_dist, plan)
        if not torch.compiler.is_compiling() and not (z_ref.is_cuda and torch.cuda.is_current_stream_capturing()):
            if self.options.gather:
                self._check_ranks(z_dist, h_dist)
            if self.check_finite:
                self._check_finite(z_ref=z_ref, z_dist=z_dist, h_ref=h_ref, h_dist=h_dist)
        with torch.autocast(z_ref.device.type, enabled=False):
            return self._objective(z_ref, z_dist, h_ref, h_dist, plan)

    def _objective(self, z_ref: Tensor, z_dist: Tensor, h_ref: Tensor, h_dist: Tensor, plan) -> RelationOutput:
        o = self.options
        varying = plan.varying.long()[:, :, None, None].expand(*plan.severity.shape[:3], 1)
        severity = plan.severity.gather(3, varying).squeeze(3)  # [B, C, L]
        if o.gather:  # from here on, B counts the samples of all ranks
            z_ref, z_dist, h_ref, h_dist, severity = (SF.gather(x) for x in (z_ref, z_dist, h_ref, h_dist, severity))
        z = torch.cat([z_ref.flatten(0, 1), z_dist.flatten(0, 3)])  # [N, E]
        h = torch.cat([h_ref.flatten(0, 1), h_dist.flatten(0, 3)])  # [N, F]
        views, dtype = z_ref.shape[1], torch.float64 if h.dtype == torch.float64 else torch.float32

        logits = SF.transport_logits(h, self.anchors.weight)  # [N, K]
        log_p = SF.log_assignments(logits, o.temperature)  # [N, K]
        graphs, entries = self._graphs(severity.to(dtype), h, log_p, views)
        mixture = self._mixture(graphs, entries)
        scales = [
            share * COEFFICIENTS[name] for name, share in zip(GRAPHS, mixture.unbind(), strict=True) if name in graphs
        ]
        graph = SF.merge_graphs(list(graphs.values()), scales)

        pair = SF.pair_cost(z, graph)
        transport = torch.zeros_like(pair)
        if o.alignment:
            codes = SF.transport_codes(logits, temperature=o.code_temperature, rounds=o.rounds)
            transport = (-0.5 * o.alignment_weight) * SF.alignment_of_assignments(
                log_p, codes, severity.shape, views, o.structural
            )
        regularizer = torch.zeros_like(pair)
        if o.regularizer != "off":
            share = len(z) / REGULARIZER_NODES if o.regularizer == "normalized" else 1.0
            regularizer = (-o.regularizer_weight / share) * graph.weight.square().sum()
        invariance = 2 * (pair + transport + regularizer)

        one, two = self._halves(z, len(severity), views)
        variance = (SF.variance(one) + SF.variance(two)) / 2
        covariance = SF.covariance(one) + SF.covariance(two)
        total = o.variance_weight * variance + o.invariance_weight * invariance + o.covariance_weight * covariance
        graph = RelationGraph(graph.weight.detach(), graph.index, graph.nodes)
        return RelationOutput(
            total, invariance, variance, covariance, pair, transport, regularizer, mixture.detach(), graph
        )

    def _graphs(
        self, severity: Tensor, h: Tensor, log_p: Tensor, views: int
    ) -> tuple[dict[str, RelationGraph], dict[str, Tensor]]:
        """The graphs that are on, and how many entries each has."""
        o = self.options
        make = {
            "structural": lambda: SF.structural_graph(severity, views, classes=o.structural),
            "ref_dist": lambda: SF.ref_dist_graph(severity, views, decay=o.decay),
            "ref_ref": lambda: SF.ref_ref_graph(severity, views),
            "dist_dist": lambda: SF.dist_dist_graph(
                severity, views, edges=o.dist_dist_edges, cap=o.dist_dist_cap, decay=o.decay
            ),
            "transport": lambda: SF.graph_of_assignments(
                log_p, o.transport_edges, o.transport_select, o.transport_diagonal
            ),
        }
        graphs, entries = {}, {}
        for name in GRAPHS:
            if name not in o.graphs:
                continue
            if name == "knn":
                graphs[name], entries[name] = self._neighbors(h)
                continue
            graphs[name] = make[name]()
            if o.binary:
                graphs[name].weight = torch.ones_like(graphs[name].weight)
            entries[name] = severity.new_full((), graphs[name].weight.numel())
        return graphs, entries

    def _neighbors(self, h: Tensor) -> tuple[RelationGraph, Tensor]:
        """Neighbour matrix plus its transpose as edges i < j: each stands for two of the matrix. And its entries."""
        distance, neighbor, mutual = SF.nearest_neighbors(h, self.options.neighbors)
        i = torch.arange(len(h), device=h.device)[:, None]
        index = torch.stack([torch.minimum(i, neighbor), torch.maximum(i, neighbor)]).flatten(1)
        # A mutual pair stands here twice, once from each side: two halves make the one of a binary graph.
        weight = torch.where(mutual, 0.5, 1.0).to(distance.dtype) if self.options.binary else 1 / (1 + distance)
        return RelationGraph(weight.flatten(), index, len(h)), (2 * mutual.numel() - mutual.sum()).to(distance.dtype)

    def _mixture(self, graphs: dict[str, RelationGraph], entries: dict[str, Tensor]) -> Tensor:
        """Weights of the graphs [6], which sum to 1 over those that are on.

        The aggregator sees [12], for each graph the number of its entries and the sum of their weights times the
        coefficient.
        """
        o, some = self.options, next(iter(graphs.values())).weight
        with torch.set_grad_enabled(torch.is_grad_enabled() and o.aggregation == "trained"):
            if o.aggregation == "equal":
                scores = some.new_zeros(len(GRAPHS))
            else:
                stats = []
                for name in GRAPHS:
                    if name in graphs:  # an edge of knn stands for two entries
                        factor = COEFFICIENTS[name] * (2 if name == "knn" else 1)
                        stats += [entries[name], factor * graphs[name].weight.sum()]
                    else:
                        stats += [some.new_zeros(())] * 2
                stats = torch.stack(stats)
                scores = self.aggregator(stats.to(self.aggregator[0].weight.dtype)).to(stats.dtype)
            if len(graphs) < len(GRAPHS):
                pairs = zip(GRAPHS, scores, strict=True)
                scores = torch.stack([score if name in graphs else score - torch.inf for name, score in pairs])
            return scores.softmax(0)

    def _halves(self, z: Tensor, B: int, V: int) -> tuple[Tensor, Tensor]:
        """The two groups of rows of z [N, E] for variance and covariance, each [n, E]."""
        R, N, E = B * V, *z.shape
        if self.options.halves == "scale":  # views 0 .. V / 2 and the rest
            ref, dist = (x.view(B, 2, -1, E) for x in z.split([R, N - R]))
            one, two = torch.cat([ref, dist], 2).unbind(1)
            return one.flatten(0, 1), two.flatten(0, 1)
        r, d = R // 2, (N - R) // 2
        parts = z.split([r, R - r, d, N - R - d])
        return torch.cat(parts[::2]), torch.cat(parts[1::2])

    def _check(self, z_ref: Tensor, z_dist: Tensor, h_ref: Tensor, h_dist: Tensor, plan) -> None:
        if not hasattr(plan, "severity") or not hasattr(plan, "varying"):
            raise TypeError(f"plan must have severity and varying, as a shamisa.Plan, got {type(plan).__name__}")
        for name, x in (("z_ref", z_ref), ("z_dist", z_dist), ("h_ref", h_ref), ("h_dist", h_dist)):
            checks.tensor(name, x)
        if plan.severity.ndim != 4:
            raise ValueError(f"plan.severity must be [B, C, L, D], got {list(plan.severity.shape)}")
        B, C, L, D = plan.severity.shape
        V, E = (*z_ref.shape[1:], 0, 0)[:2]  # a wrong number of dimensions fails below
        F = self.anchors.in_features
        expected = {
            "z_ref": (z_ref, "B, V, E", (B, V, E)),
            "z_dist": (z_dist, "B, V, C, L, E", (B, V, C, L, E)),
            "h_ref": (h_ref, "B, V, F", (B, V, F)),
            "h_dist": (h_dist, "B, V, C, L, F", (B, V, C, L, F)),
            "plan.varying": (plan.varying, "B, C", (B, C)),
        }
        for name, (x, axes, shape) in expected.items():
            if tuple(x.shape) != shape:
                raise ValueError(f"{name} must be [{axes}] = {list(shape)}, got {list(x.shape)}")
            if not name.startswith("plan") and not x.is_floating_point():
                raise ValueError(f"{name} must be floating point, got {x.dtype}")
            if x.device != z_ref.device:
                raise ValueError(f"{name} must be on {z_ref.device} like z_ref, got {x.device}")
        for name, x in (("plan.severity", plan.severity), ("the parameters", self.aggregator[0].weight)):
            if x.device != z_ref.device:
                raise ValueError(f"{name} must be on {z_ref.device} like z_ref, got {x.device}")
        check_severity("plan.severity", plan.severity)
        if can_look(plan.varying) and not bool(((plan.varying >= 0) & (plan.varying < D)).all()):
            raise ValueError(f"plan.varying must lie in 0..D-1 = {D - 1}, got {plan.varying.tolist()}")
        if B * V < 2 or B * V * C * L < 2:
            raise ValueError(f"B V must be at least 2, got B = {B}, V = {V}")
        if self.options.halves == "scale" and V % 2:
            raise ValueError(f"V must be even for halves='scale', got {V}")

    def _check_ranks(self, z_dist: Tensor, h_dist: Tensor) -> None:
        shape = (*z_dist.shape, h_dist.shape[-1])
        if z_dist.is_cuda and shape in self._compared:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():  # else gather says what is missing
            SF.check_ranks("B, V, C, L, E, F", shape, z_dist.device)
            self._compared.add(shape)

    def _check_finite(self, **tensors: Tensor) -> None:
        for name, x in tensors.items():
            if wrong := int(x.detach().isfinite().logical_not_().sum()):
                raise ValueError(f"{name} must be finite, got NaN or infinity in {wrong} of {x.numel()} places")

    def extra_repr(self) -> str:
        shown = self.options.changed() | ({"check_finite": True} if self.check_finite else {})
        return ", ".join(f"{k}={v!r}" for k, v in shown.items())
