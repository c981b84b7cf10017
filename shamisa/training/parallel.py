"""Training in several processes: who takes part, what they agree on, gradients averaged, batch normalisation shared.

``torchrun`` starts the processes and says through the environment who is who; nothing is home-made but one batch
normalisation for the CPU, where torch's cannot run.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# what gloo, NCCL and torch say when another rank is gone; their errors have no class of their own
_LOST = re.compile(r"gloo|nccl|connection (closed|reset)|timed? ?out|process ?group|broken pipe", re.IGNORECASE)

T = TypeVar("T")


def launched() -> tuple[int, int] | None:
    """(rank, number of processes) as the environment of torchrun says; None without it."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Processes:
    """The processes of a run: one, or those that torchrun started (``connect``).

    Attributes:
        rank, world_size: this process and their number; local_rank: its number on this machine, which chooses the GPU.
        connected: whether torch.distributed is in use, also with a single process under torchrun, which has nobody to
            speak to: it works as one that was started without.
        timeout: seconds that a process waits for the others before it fails.
    """

    def __init__(self) -> None:
        self.rank, self.world_size, self.local_rank = 0, 1, 0
        self.connected, self.timeout = False, 0.0
        self._control: dist.ProcessGroup | None = None

    @classmethod
    def connect(cls, device: str, timeout: float) -> Processes:
        """Join the processes that the environment names; without one (no torchrun), a single process.

        Args:
            device: as the field of the configuration; "cpu", or "auto" without a GPU: gloo; else nccl, and gloo for what
                the hosts agree on.
            timeout: seconds.

        Raises:
            RuntimeError: torch without torch.distributed, or the others cannot be reached.
        """
        found = cls()
        if launched() is None:
            return found
        if not dist.is_available():
            raise RuntimeError("several processes need torch.distributed, which this torch was built without")
        found.local_rank, found.timeout = int(os.environ.get("LOCAL_RANK", 0)), timeout
        wait = datetime.timedelta(seconds=timeout)
        kind = "cuda" if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()) else "cpu"
        if kind == "cuda":
            if found.local_rank >= torch.cuda.device_count():
                raise RuntimeError(
                    f"each process needs a GPU of its own: this is process {found.local_rank} of this machine, "
                    f"torch {torch.__version__} finds {torch.cuda.device_count()} CUDA devices"
                )
            torch.cuda.set_device(found.local_rank)
        try:
            dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=wait)
        except (ValueError, RuntimeError) as error:
            raise RuntimeError(f"cannot join the other processes: {error}") from None
        found.rank, found.world_size, found.connected = dist.get_rank(), dist.get_world_size(), True
        found._control = dist.new_group(backend="gloo", timeout=wait) if kind == "cuda" else dist.group.WORLD
        return found

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others to speak to."""
        return self.connected and self.world_size > 1

    def close(self) -> None:
        """Leave the others; only after success, because it may wait for them."""
        if self.connected:
            self._control = (
                None  # a group that is still held lives on, with its threads, into the end of the interpreter
            )
            dist.destroy_process_group()
            self.connected = False

    # ---- agreement ---------------------------------------------------------------------------------------------------
    def share(self, stop: bool, error: str = "", notes: dict[str, str] | None = None) -> tuple[bool, str, dict]:
        """What any process wants or has met -> the same on all: stop, errors in words, notes of all.

        One small reduction on the host; texts travel only when there are some. Every process must call it.
        """
        notes = notes or {}
        if not self.several:
            return stop, error, notes
        flags = torch.tensor([stop, bool(error), bool(notes)], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._control)
        if flags[1:].any():
            texts: list = [None] * self.world_size
            dist.all_gather_object(texts, (error, notes), group=self._control)
            errors = [e for e, _ in texts]
            if len(set(errors)) == 1:  # the same everywhere
                error = errors[0]
            else:
                error = "; ".join(f"rank {r}: {e}" for r, e in enumerate(errors) if e)
            notes = {k: v for _, found in texts for k, v in found.items()}
        return bool(flags[0]), error, notes

    def agree(self, action: Callable[[], T]) -> T:
        """``action()`` of every process; what stops one stops all. Every process must call it.

        Raises:
            ValueError, TypeError, RuntimeError, OSError: from ``action``; of several processes ValueError on all of them,
                with what was wrong on any.
        """
        if not self.several:
            return action()
        found, fault = None, ""
        try:
            found = action()
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            fault = str(error) or repr(error)
        try:
            _, fault, _ = self.share(False, fault)
        except RuntimeError as error:
            fault = f"another process ended: {error}"
        if fault:
            raise ValueError(fault)
        return found

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes of a small tensor on the device; NaN on one is NaN on all."""
        if self.several:
            dist.all_reduce(values)
            values = values / self.world_size
        return values

    def lost(self, error: BaseException) -> bool:
        """Whether an error most likely says that another process is gone."""
        return self.world_size > 1 and isinstance(error, RuntimeError) and bool(_LOST.search(str(error)))

    # ---- the model ---------------------------------------------------------------------------------------------------
    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the processes in backward; every process must call it."""
        return DistributedDataParallel(model) if self.several else model

    def without_averaging(self, wrapped: nn.Module, skip: bool) -> AbstractContextManager:
        """Forward and backward inside only add to this process's gradients when ``skip``."""
        return wrapped.no_sync() if skip and self.several else nullcontext()

    def share_batch_norm(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Batch normalisation over the images of all processes instead of each process's own."""
        if not self.several:
            return model
        return nn.SyncBatchNorm.convert_sync_batchnorm(model) if device.type == "cuda" else _convert(model)


# ---- batch normalisation on the CPU ----------------------------------------------------------------------------------
class _Sum(torch.autograd.Function):
    """Sum over the processes; every process's loss depends on it, so its gradients are summed as well."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """torch.nn.SyncBatchNorm for the CPU: x [n, C, ...], n the same in every process; names of the state as BatchNorm's.

    Statistics in float32 by two passes (mean, then squares of what is left), so two reductions forward and two backward.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"x must be [n, C, ...], got {list(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        y, dims = x.float(), [d for d in range(x.dim()) if d != 1]
        shape = [-1 if d == 1 else 1 for d in range(x.dim())]
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = _Sum.apply(y.sum(dims)) / count
        y = y - mean.view(shape)
        var = _Sum.apply(y.square().sum(dims)) / count
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean.detach(), share)
            self.running_var.lerp_(var.detach() * (count / (count - 1)), share)
        y = y * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)


def _convert(module: nn.Module) -> nn.Module:
    """Every BatchNorm below -> SharedBatchNorm with the same parameters and buffers."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        made = SharedBatchNorm(module.num_features, module.eps, module.momentum, module.affine)
        made.track_running_stats = module.track_running_stats
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            setattr(made, name, tensor)
        return made.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, _convert(child))
    return module
