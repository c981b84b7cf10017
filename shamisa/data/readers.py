"""From photographs to training batches: which photographs a sample sees, where they are cut, and a loader for them.

All choices are Philox words of the seed's key in the domain ``DOMAIN_DATA``, so a batch is a pure function of (seed,
step):

=================== ================ ======== ======================================================================
element             draw             extra    used for
=================== ================ ======== ======================================================================
sample of the run   reference r      attempt  which photograph (r > 0, or any r after a failure)
sample of the run   R + v            0        row and column of the crop of view v
photograph          2^32 - 1         epoch    order of the epoch (photographs sorted by their words)
=================== ================ ======== ======================================================================

Sample = step * batch_size * world_size + rank * batch_size + position; the epoch is sample // len(source).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..reference.philox import DOMAIN_DATA, derive_key, words
from .photos import PhotoError, Photos

MAX_ATTEMPTS = 1000  # photographs that may fail in a row before the search for a readable one ends
_ORDER = 2**32 - 1  # draw of the epochs' orders
_FILTER = Image.Resampling.BICUBIC  # widened when it shrinks, so antialiased
_SOON = 200  # photographs that must be counted, or all, before max_skipped is judged


class References:
    """Crops of reference photographs, step by step.

    A sample has its own photograph (every photograph once per epoch, in an order drawn per epoch) and references - 1
    others, uniformly random, distinct from it and from each other while the source has enough readable photographs,
    else repeated. Each gives one crop per scale at independent positions. Views are ordered by scale, then by
    reference: with the defaults 0..2 are the three photographs at full scale, 3..5 the same three at half scale.

    A photograph at scale s < 1 has round(s * W) x round(s * H) pixels, made by Pillow's antialiased bicubic filter,
    rows first, then columns, 8 bits between (only the part needed is computed). Where it is smaller than the crop it
    lies at a random place in it, surrounded by zeros or by its reflection.

    A photograph that fails (``PhotoError``) is replaced by the next attempt at the same address, uniformly among those
    that the sample has not tried.

    Args:
        source: photographs (``PhotoFolder``, ``EmbeddedPhotos``, anything with their three methods).
        batch_size: B, samples per step and rank.
        seed: any integer of 64 bits.
        crop: side of a crop, pixels.
        references: photographs per sample.
        scales: each in (0, 1].
        pad: "zero" or "reflect".
        rank, world_size: this process and the number of processes; together they read the batch that one process with
            batch_size * world_size would.
        max_skipped: the share of photographs that may fail, 0..1; judged from 200 photographs on (or all, if fewer).

    Attributes:
        skipped: name -> reason of every photograph that failed so far in this process's ``loader``.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        source: Photos,
        *,
        batch_size: int,
        seed: int,
        crop: int = 224,
        references: int = 3,
        scales: tuple[float, ...] = (1.0, 0.5),
        pad: str = "zero",
        rank: int = 0,
        world_size: int = 1,
        max_skipped: float = 0.5,
    ) -> None:
        for name, given, low in (
            ("len(source)", len(source), 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, -(2**63)),
            ("crop", crop, 1),
            ("references", references, 1),
            ("rank", rank, 0),
            ("world_size", world_size, 1),
        ):
            if not isinstance(given, int) or not low <= given < 2**63:
                raise ValueError(f"{name} must be an integer of at least {low}, got {given!r}")
        if rank >= world_size:
            raise ValueError(f"rank must lie in 0..world_size - 1 = {world_size - 1}, got {rank}")
        if not scales or not all(0 < s <= 1 for s in scales):
            raise ValueError(f"scales must be numbers in (0, 1], got {scales!r}")
        if pad not in ("zero", "reflect"):
            raise ValueError(f"pad must be 'zero' or 'reflect', got {pad!r}")
        if not 0 <= max_skipped <= 1:
            raise ValueError(f"max_skipped must be a share in 0..1, got {max_skipped!r}")
        self.source, self.batch_size, self.seed, self.crop = source, batch_size, seed, crop
        self.references, self.scales, self.pad = references, tuple(scales), pad
        self.rank, self.world_size, self.max_skipped = rank, world_size, max_skipped
        self.skipped: dict[str, str] = dict(getattr(source, "skipped", {}))
        self._key = torch.tensor(seed)
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))  # epoch, photographs in its order
        self._failed: dict[int, str] = {}  # photograph -> reason, so that none is tried twice in a process
        self._judged: tuple[set[int], set[int]] = (set(), set())  # photographs tried, photographs failed, in the loader

    @property
    def views(self) -> int:
        """V, crops per sample."""
        return self.references * len(self.scales)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every photograph is somebody's own at least once (the last step may reach into the
        next epoch)."""
        return -(-len(self.source) // (self.batch_size * self.world_size))

    def batch(self, step: int) -> tuple[Tensor, dict[str, str]]:
        """The crops of a step, uint8 [B, V, 3, crop, crop], and name -> reason of the photographs that failed in it.

        A pure function of (source, seed, step) and the fields.

        Raises:
            ValueError: step negative.
            RuntimeError: no photograph could be read.
        """
        crops, tried, failed = self._read(step)
        return crops, {self.source.name(i): reason for i, reason in failed.items()}

    def loader(
        self,
        start_step: int,
        stop_step: int,
        *,
        workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
        context: str | None = None,
    ) -> Iterator[tuple[int, Tensor, dict[str, str]]]:
        """Yields (step, crops uint8 [B, V, 3, crop, crop], skipped) for start_step <= step < stop_step.

        ``skipped`` holds name -> reason of the photographs that failed for the first time; ``self.skipped`` collects
        them.

        Args:
            workers: processes that read ahead; 0 reads in this one. The crops do not depend on it.
            prefetch: steps that each worker reads ahead.
            pin_memory: copy the crops into page-locked memory.
            context: how workers start, "fork", "spawn" or "forkserver"; None leaves it to Python.

        Raises:
            ValueError: a range, number of workers or prefetch that makes no sense.
            RuntimeError: while iterating: no photograph could be read, or more than max_skipped failed.
        """
        for name, given, low in (
            ("start_step", start_step, 0),
            ("stop_step", stop_step, start_step),
            ("workers", workers, 0),
            ("prefetch", prefetch, 1),
        ):
            if not isinstance(given, int) or given < low:
                raise ValueError(f"{name} must be an integer of at least {low}, got {given!r}")
        loader = DataLoader(
            _Steps(self),
            batch_size=None,
            sampler=range(start_step, stop_step),
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            collate_fn=_as_is,
            pin_memory=pin_memory,
            worker_init_fn=_one_thread,
            multiprocessing_context=context if workers else None,
            generator=torch.Generator(),  # DataLoader draws a seed for its workers: not from the global generator
        )
        return self._judge(loader)

    def _judge(self, loader: DataLoader) -> Iterator[tuple[int, Tensor, dict[str, str]]]:
        for step, crops, tried, failed, error in loader:
            if error is not None:
                raise RuntimeError(error)
            seen, bad = self._judged
            fresh = {self.source.name(i): reason for i, reason in failed.items() if i not in bad}
            seen.update(tried)
            bad.update(failed)
            self.skipped.update(fresh)
            if len(bad) > self.max_skipped * max(len(seen), min(len(self.source), _SOON)):
                name, reason = next(iter(fresh.items()))
                raise RuntimeError(
                    f"{len(bad)} of the {len(seen)} photographs tried by step {step} cannot be used, "
                    f"more than max_skipped = {self.max_skipped:g}; the last: {name}: {reason}"
                )
            yield step, crops, fresh

    # ---- choice ------------------------------------------------------------------------------------------------------
    def _epoch(self, epoch: int) -> Tensor:
        """The photographs in the order in which they are own photographs in an epoch, int64 [len(source)]."""
        if self._order[0] != epoch:
            photo = torch.arange(len(self.source))
            self._order = epoch, derive_key(self._key, photo, _ORDER, epoch, domain=DOMAIN_DATA).argsort(stable=True)
        return self._order[1]

    def _read(self, step: int) -> tuple[Tensor, list[int], dict[int, str]]:
        """Crops, photographs tried, photographs that failed with their reasons."""
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        B, R, n = self.batch_size, self.references, len(self.source)
        first = (step * self.world_size + self.rank) * B
        sample = torch.arange(first, first + B)
        w = words(self._key, sample[:, None], torch.arange(R + self.views), 0, DOMAIN_DATA)  # 4 x [B, R + V]
        choice, place = w[0][:, :R].tolist(), torch.stack(w[:2], -1)[:, R:].tolist()
        crops = torch.zeros((B, self.views, 3, self.crop, self.crop), dtype=torch.uint8)
        tried: list[int] = []
        failed: dict[int, str] = {}
        for b in range(B):
            epoch, position = divmod(first + b, n)
            own = int(self._epoch(epoch)[position])
            photos = self._photos(first + b, own, choice[b], tried, failed)
            for s, scale in enumerate(self.scales):
                for r, photo in enumerate(photos):
                    v = s * R + r
                    cut(photo, scale, place[b][v], self.pad, out=crops[b, v])
        return crops, tried, failed

    def _photos(
        self, sample: int, own: int, choice: list[int], tried: list[int], failed: dict[int, str]
    ) -> list[Tensor]:
        """The R photographs of a sample; appends to tried and failed."""
        n = len(self.source)
        used: list[int] = []  # by this sample, sorted
        good: list[Tensor] = []
        for r in range(self.references):
            for attempt in range(min(MAX_ATTEMPTS, n - len(used))):
                word = int(words(self._key, sample, r, attempt, DOMAIN_DATA)[0]) if attempt else choice[r]
                i = own if r == attempt == 0 else _unused(word, used, n)
                insort(used, i)
                tried.append(i)
                try:
                    good.append(self._photo(i))
                    break
                except PhotoError as error:
                    failed[i] = error.reason
            else:
                if not good or len(used) < n:
                    i, reason = next(reversed(failed.items()))
                    raise RuntimeError(
                        f"no readable photograph after {len(used)} attempts, the source has {n}; "
                        f"the last: {self.source.name(i)}: {reason}"
                    )
                good.append(good[(choice[r] * len(good)) >> 32])  # every readable one is in use: repeat one
        return good

    def _photo(self, i: int) -> Tensor:
        if i in self._failed:
            raise PhotoError(self.source.name(i), self._failed[i])
        try:
            return self.source[i]
        except PhotoError as error:
            self._failed[i] = error.reason
            raise


def _unused(word: int, used: list[int], n: int) -> int:
    """A number below n that is not in the sorted list used, uniform."""
    i = (word * (n - len(used))) >> 32
    for u in used:
        i += i >= u
    return i


# ---- crops -----------------------------------------------------------------------------------------------------------
def cut(photo: Tensor, scale: float, place: tuple[int, int] | list[int], pad: str, *, out: Tensor) -> None:
    """Write a square crop of a photograph at a scale into out.

    Args:
        photo: uint8 [3, H, W].
        scale: in (0, 1]; the photograph has round(scale * side) pixels a side, at least one.
        place: two words 0..2^32-1, row and column: (word * (free + 1)) >> 32 with free = the difference of the
            sides.
        pad: "zero" or "reflect" where the photograph is smaller.
        out: uint8 [3, crop, crop], filled with zeros.
    """
    crop = out.shape[-1]
    height, width = (int(side * scale + 0.5) or 1 for side in photo.shape[1:])
    rows, columns = _span(height, crop, place[0]), _span(width, crop, place[1])
    part = photo[:, rows.source, columns.source] if scale == 1 else _shrink(photo, scale, rows, columns)
    if pad == "reflect" and part.shape[1:] != out.shape[1:]:
        out.copy_(part[:, rows.reflected(crop)][:, :, columns.reflected(crop)])
    else:
        out[:, rows.target, columns.target] = part


class _Span:
    """Where a crop meets one side of a photograph: out[target] = photo[source]."""

    def __init__(self, source: int, target: int, length: int, side: int) -> None:
        self.source, self.target = slice(source, source + length), slice(target, target + length)
        self.side = side

    def reflected(self, crop: int) -> Tensor:
        """Positions in photo[source] for all of the crop, mirrored at its ends without repeating them, int64 [crop]."""
        length = self.target.stop - self.target.start
        period = max(1, 2 * (length - 1))
        i = (torch.arange(crop) - self.target.start) % period
        return torch.minimum(i, period - i)


def _span(side: int, crop: int, word: int) -> _Span:
    free = (word * (abs(side - crop) + 1)) >> 32
    return _Span(free, 0, crop, side) if side >= crop else _Span(0, free, side, side)


def _shrink(photo: Tensor, scale: float, rows: _Span, columns: _Span) -> Tensor:
    """photo resized to rows.side x columns.side, of which only the spans are computed."""
    box, region, shape = [], [], []
    for side, span in ((photo.shape[1], rows), (photo.shape[2], columns)):
        ratio = side / span.side
        low, high = span.source.start * ratio, span.source.stop * ratio
        margin = int(3 * ratio) + 2  # the filter reaches 2 * ratio to either side
        first, last = max(0, int(low) - margin), min(side, int(high) + 1 + margin)
        region.append(slice(first, last))
        box.append((low - first, min(high, side) - first))
        shape.append(span.source.stop - span.source.start)
    pixels = np.ascontiguousarray(photo[:, region[0], region[1]].permute(1, 2, 0).numpy())
    (top, bottom), (left, right) = box
    # one direction a call: in one call the size decides which comes first, and that can move a level
    lines = Image.fromarray(pixels).resize((shape[1], len(pixels)), _FILTER, box=(left, 0, right, len(pixels)))
    small = lines.resize((shape[1], shape[0]), _FILTER, box=(0, top, shape[1], bottom))
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


# ---- loader ----------------------------------------------------------------------------------------------------------
class _Steps(Dataset):
    """Step -> (step, crops, photographs tried, photographs that failed, error). An error travels as text, so that it
    reaches the user without a worker's traceback."""

    def __init__(self, references: References) -> None:
        self.references = references

    def __getitem__(self, step: int) -> tuple[int, Tensor | None, list[int], dict[int, str], str | None]:
        try:
            return step, *self.references._read(step), None
        except RuntimeError as error:
            return step, None, [], {}, str(error)


def _as_is(item: tuple) -> tuple:
    return item


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
