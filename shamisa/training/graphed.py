"""A whole training step as one CUDA graph: recorded once, then replayed, so that the host launches nothing.

Everything the step reads lies in tensors that stay where they are: crops, plan, learning rate. The first steps run as
usual on a stream of their own, because libraries choose and allocate then; they are steps of the training like any other.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..engine import Plan

WARMUP = 3  # steps before the recording


def check_graphable(
    config, device: torch.device, precision: torch.dtype, world_size: int, kernels: tuple[str, ...]
) -> None:
    """Raise ValueError where a step cannot be recorded. ``kernels``: devices with a compiled distortion engine."""
    faults = [
        (device.type != "cuda", f"a GPU, got device {device}"),
        (world_size > 1, f"one process, got {world_size}"),
        (config.gather, "--no-gather"),
        (config.accumulate > 1, f"accumulate = 1, got {config.accumulate}"),
        (precision == torch.float16, "bfloat16 or float32: the scale of float16 is decided on the host"),
        (config.backend == "reference" or device.type not in kernels, "the compiled CUDA kernels of the engine"),
    ]
    for fault, need in faults:
        if fault:
            raise ValueError(f"cuda_graph needs {need}")


class GraphedStep:
    """A step of training, engine to optimizer, that never asks the device anything.

    Args:
        trainer: with a fused optimizer; its learning rate becomes a tensor.
        crops: [B, V, 3, H, W] uint8, a batch whose shape all others have.
        plan: the same for plans.
    """

    def __init__(self, trainer, crops: Tensor, plan: Plan) -> None:
        self.trainer = trainer
        device = trainer.device
        self.crops = torch.empty_like(crops, device=device)
        self.plan = Plan(*(torch.empty_like(getattr(plan, f.name), device=device) for f in dataclasses.fields(Plan)))
        for group in trainer.optimizer.param_groups:
            group["lr"] = torch.zeros((), device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.warm = 0
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def load(self, crops: Tensor, plan: Plan, lr: float) -> None:
        """Put the inputs of a step where it reads them."""
        self.crops.copy_(crops, non_blocking=True)
        for f in dataclasses.fields(Plan):
            getattr(self.plan, f.name).copy_(getattr(plan, f.name), non_blocking=True)
        for group in self.trainer.optimizer.param_groups:
            group["lr"].fill_(lr * group["scale"])

    def body(self) -> tuple[Tensor, Tensor, Tensor]:
        """The step of the trainer on the tensors of ``load`` -> values (terms of the objective, norm of the gradient),
        z_dist, h_dist."""
        return self.trainer.update([(self.crops, self.plan)])

    def __call__(self, crops: Tensor, plan: Plan, lr: float) -> tuple[Tensor, Tensor, Tensor]:
        """One step; what it returns is overwritten by the next one.

        Raises:
            RuntimeError: the step cannot be recorded; nothing of it has happened.
        """
        self.load(crops, plan, lr)
        if self.graph is None and self.warm < WARMUP:
            self.warm += 1
            current = torch.cuda.current_stream(self.stream.device)
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                outputs = self.body()
            current.wait_stream(self.stream)
            return outputs
        if self.graph is None:
            self.graph, self.outputs = self.record()
        self.graph.replay()
        return self.outputs

    def record(self) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor, Tensor]]:
        """The graph of ``body`` and what it writes to; recording executes nothing."""
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: the loader's thread may pin memory meanwhile, which the default mode forbids to all threads
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                outputs = self.body()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise RuntimeError(f"the step cannot be recorded ({reason}); train without --cuda-graph") from error
        return graph, outputs
