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

import os
import signal
import threading
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .. import checks
from ..randomness import derive_key, words
from ..reference.philox import DOMAIN_DATA
from .crops import cut
from .photos import PhotoError, Photos

MAX_ATTEMPTS = 1000  # photographs that may fail in a row before the search for a readable one ends
LAST_WORDS = 30.0  # seconds between SIGTERM and the end of a worker that nobody has ended
_ORDER = 2**32 - 1  # draw of the epochs' orders
_SOON = 200  # photographs that must be counted, or all, before max_skipped is judged

T = TypeVar("T")
# step, crops, photographs tried, photographs that failed with reasons, who decoded how many, truncated ones, error
Item = tuple[int, Tensor | None, list[int], dict[int, str], dict[str, int], list[int], str | None]


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
        cut_off: truncated JPEGs of the loader that were read as far as they go, by name (``EncodedPhotos.cut_off``).
        decoded: which decoder made how many photographs of the loader, where a reader has several.

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
            ("crop", crop, 1),
            ("references", references, 1),
            ("rank", rank, 0),
            ("world_size", world_size, 1),
        ):
            checks.integer(name, given, low)
        checks.seed("seed", seed)
        if rank >= world_size:
            raise ValueError(f"rank must lie in 0..world_size - 1 = {world_size - 1}, got {rank}")
        if not scales or not all(0 < s <= 1 for s in scales):
            raise ValueError(f"scales must be numbers in (0, 1], got {scales!r}")
        checks.choice("pad", pad, ("zero", "reflect"))
        checks.number("max_skipped", max_skipped, 0, 1)
        self.source, self.batch_size, self.seed, self.crop = source, batch_size, seed, crop
        self.references, self.scales, self.pad = references, tuple(scales), pad
        self.rank, self.world_size, self.max_skipped = rank, world_size, max_skipped
        self.skipped: dict[str, str] = dict(getattr(source, "skipped", {}))
        self.cut_off: set[str] = set()
        self.decoded: Counter[str] = Counter()
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
        crops, _, failed, _ = self._read(step)
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
        check_range(start_step, stop_step, workers, prefetch)
        loader = DataLoader(
            _Steps(self),
            batch_size=None,
            sampler=range(start_step, stop_step),
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            collate_fn=_as_is,
            pin_memory=pin_memory,
            worker_init_fn=prepare_worker,
            multiprocessing_context=context if workers else None,
            generator=torch.Generator(),  # DataLoader draws a seed for its workers: not from the global generator
        )
        return self._judge(loader)

    def _judge(self, loader: Iterable[Item]) -> Iterator[tuple[int, Tensor, dict[str, str]]]:
        for step, crops, tried, failed, decoded, cut_off, error in loader:
            if error is not None:
                raise RuntimeError(error)
            self.decoded.update(decoded)
            seen, bad = self._judged
            fresh = {self.source.name(i): reason for i, reason in failed.items() if i not in bad}
            seen.update(tried)
            bad.update(failed)
            self.skipped.update(fresh)
            self.cut_off.update(map(self.source.name, cut_off))
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

    def _read(self, step: int) -> tuple[Tensor, list[int], dict[int, str], dict[str, int]]:
        """Crops, photographs tried, photographs that failed with their reasons, who decoded how many."""
        crops = torch.zeros((self.batch_size, self.views, 3, self.crop, self.crop), dtype=torch.uint8)
        tried: list[int] = []
        failed: dict[int, str] = {}
        for b, (photos, places) in enumerate(self._samples(step, self._photo, tried, failed)):
            for v, place in enumerate(places):
                scale = self.scales[v // self.references]
                cut(photos[v % self.references], scale, place, self.pad, out=crops[b, v])
        return crops, tried, failed, {}

    def _samples(
        self, step: int, open_photo: Callable[[int], T], tried: list[int], failed: dict[int, str]
    ) -> Iterator[tuple[list[T], list[list[int]]]]:
        """For each sample of a step its R photographs, as open_photo gives them (or raises PhotoError), and the places
        [V, 2] of its crops; appends to tried and failed."""
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        B, R, n = self.batch_size, self.references, len(self.source)
        first = (step * self.world_size + self.rank) * B
        sample = torch.arange(first, first + B)
        w = words(self._key, sample[:, None], torch.arange(R + self.views), 0, DOMAIN_DATA)  # 4 x [B, R + V]
        choice, place = w[0][:, :R].tolist(), torch.stack(w[:2], -1)[:, R:].tolist()
        for b in range(B):
            epoch, position = divmod(first + b, n)
            own = int(self._epoch(epoch)[position])
            yield self._photos(first + b, own, choice[b], open_photo, tried, failed), place[b]

    def _photos(
        self,
        sample: int,
        own: int,
        choice: list[int],
        open_photo: Callable[[int], T],
        tried: list[int],
        failed: dict[int, str],
    ) -> list[T]:
        """The R photographs of a sample."""
        n = len(self.source)
        used: list[int] = []  # by this sample, sorted
        good: list[T] = []
        for r in range(self.references):
            for attempt in range(min(MAX_ATTEMPTS, n - len(used))):
                word = int(words(self._key, sample, r, attempt, DOMAIN_DATA)[0]) if attempt else choice[r]
                i = own if r == attempt == 0 else _unused(word, used, n)
                insort(used, i)
                tried.append(i)
                try:
                    good.append(self._remembered(i, open_photo))
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

    def _remembered(self, i: int, open_photo: Callable[[int], T]) -> T:
        """open_photo(i), which is not asked again for one that failed."""
        if i in self._failed:
            raise PhotoError(self.source.name(i), self._failed[i])
        try:
            return open_photo(i)
        except PhotoError as error:
            self._failed[i] = error.reason
            raise

    def _photo(self, i: int) -> Tensor:
        photo = self.source[i]
        # floats would be cut to the levels 0 and 1
        if not isinstance(photo, Tensor) or photo.dtype != torch.uint8 or photo.dim() != 3 or photo.shape[0] != 3:
            got = f"{photo.dtype} {list(photo.shape)}" if isinstance(photo, Tensor) else type(photo).__name__
            raise ValueError(f"source[{i}] must be uint8 [3, H, W], got {got}")
        return photo


def _unused(word: int, used: list[int], n: int) -> int:
    """A number below n that is not in the sorted list used, uniform."""
    i = (word * (n - len(used))) >> 32
    for u in used:
        i += i >= u
    return i


# ---- loader ----------------------------------------------------------------------------------------------------------
class _Steps(Dataset):
    """Step -> item. An error travels as text, so that it reaches the user without a worker's traceback."""

    def __init__(self, references: References) -> None:
        self.references = references

    def __getitem__(self, step: int) -> Item:
        try:
            crops, tried, failed, decoded = self.references._read(step)
            cut_off = sorted(getattr(self.references.source, "cut_off", set()).intersection(tried))
            return step, crops, tried, failed, decoded, cut_off, None
        except RuntimeError as error:
            return step, None, [], {}, {}, [], str(error)


def check_range(start_step: int, stop_step: int, workers: int, prefetch: int) -> None:
    """ValueError for arguments of a loader that make no sense."""
    for name, given, low in (
        ("start_step", start_step, 0),
        ("stop_step", stop_step, start_step),
        ("workers", workers, 0),
        ("prefetch", prefetch, 1),
    ):
        checks.integer(name, given, low)


def _as_is(item: tuple) -> tuple:
    return item


def prepare_worker(worker: int) -> None:
    """One thread; and a signal to the whole process group does not end a worker that the running step still needs.

    The training process finishes its step and then ends its workers; one that is left is gone after LAST_WORDS seconds.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_later)


def _leave_later(number: int, _) -> None:
    timer = threading.Timer(LAST_WORDS, os._exit, (128 + number,))
    timer.daemon = True
    timer.start()
