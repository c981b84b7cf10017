"""Named configurations: the demonstration, the published one, and its ablations, as fields that differ.

The letters A1 ... F1 are this package's own order, one letter per part of the method; whether they are the letters of the
paper's tables could not be checked. The descriptive names say what each one changes.
"""

from __future__ import annotations

DEMO = {  # differs from the published configuration in
    "batch": 1,
    "crop": 96,
    "workers": 0,
    "encoder": "shamisa/small",
    "init": "none",
    "hidden": 512,
    "embedding": 256,
    # The published weights shrink the embedding of a small network from random weights until few dimensions are left, and
    # the published regulariser makes its features collapse. These keep it spread out.
    "regularizer": "off",
    "variance_weight": 25.0,
    "invariance_weight": 10.0,
    "covariance_weight": 20.0,
    "steps": 200,
    "optimizer": "adamw",
    "lr": 1e-3,
    "schedule": "cosine",
    "checkpoint_every": 50,
    "check_every": 50,
    "demo": True,
}

METADATA = ("structural", "ref_dist", "ref_ref", "dist_dist")  # graphs from what the engine did
STRUCTURE = ("knn", "transport")  # graphs from the features


def _without(graph: str) -> dict:
    return {"graphs": tuple(g for g in METADATA + STRUCTURE if g != graph)}


ABLATIONS = {  # letter: (name, what differs from "paper")
    # A, the distortion engine
    "A1": ("paper-discrete", {"continuous": False}),
    "A2": ("paper-uniform", {"severity": "uniform"}),
    "A3": ("paper-fixed-order", {"order": "fixed"}),
    "A4": ("paper-one-distortion", {"max_distortions": 1}),
    # B, which graphs
    "B1": ("paper-metadata-only", {"graphs": METADATA}),
    "B2": ("paper-structure-only", {"graphs": STRUCTURE}),
    "B3": ("paper-knn-only", {"graphs": ("knn",)}),
    "B4": ("paper-no-structural", _without("structural")),
    "B5": ("paper-no-ref-dist", _without("ref_dist")),
    "B6": ("paper-no-ref-ref", _without("ref_ref")),
    "B7": ("paper-no-dist-dist", _without("dist_dist")),
    "B8": ("paper-no-knn", _without("knn")),
    "B9": ("paper-no-transport", _without("transport")),
    # C, the weights inside a graph
    "C1": ("paper-binary", {"binary": True}),
    "C2": ("paper-reciprocal", {"decay": "reciprocal"}),
    "C3": ("paper-same-scale", {"structural": "same_scale"}),
    # D, the weights of the graphs
    "D1": ("paper-equal-weights", {"aggregation": "equal"}),
    "D2": ("paper-trained-weights", {"aggregation": "trained"}),
    # E, transport
    "E1": ("paper-transport-rows", {"transport_select": "row"}),
    "E2": ("paper-transport-no-diagonal", {"transport_diagonal": False}),
    "E3": ("paper-no-alignment", {"alignment": False}),
    # F, the regulariser
    "F1": ("paper-no-regularizer", {"regularizer": "off"}),
}
