"""Frozen features of photographs of any size: five crops at two scales, from files or tensors, with a cache.

Protocol (ARNIQA, arXiv 2310.14918, and SHAMISA): the four corner crops and the central one, of the photograph and of the
photograph at half size (``crops.views``); the features of the two scales are concatenated crop by crop, so a photograph
gives [5, 2F].
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import checks
from ..data.decode import Limits, is_truncated, log_remark
from ..data.photos import MAX_PIXELS, PhotoError, read_photo
from ..engine import normalize
from ..files import hash_file, printable
from ..networks.encoders import describe, is_plain, normalization
from .crops import CROPS, FULL, SCALES, check_view, views
from .runtimes import check_runtime, compile_encoder

PIXELS_TOGETHER = MAX_PIXELS  # of all photographs that are being decoded; one alone may have more
_LARGE = 10_000_000  # pixels from which memory is returned after a photograph, which takes milliseconds
_FORMAT = 4  # of the cache: changes with anything that changes features
_TRUNCATED = "-truncated"  # ends the names in the cache of files that only truncated="read" reads


def by_crop(h: Tensor) -> Tensor:
    """h [N * 2 * 5, F] of the ``views`` of N photographs -> features [N, 5, 2F], both scales of a crop side by side."""
    return h.view(-1, SCALES, CROPS, h.shape[1]).transpose(1, 2).flatten(2)


def photographs_per_call(batch: int | None, device: torch.device) -> int:
    """The number given, or by default 1 on a CPU, where the activations of more leave the caches and cost page faults (up to
    twice the time was measured), and 8 elsewhere; ValueError below 1."""
    return checks.integer("batch", batch, 1) if batch is not None else 1 if device.type == "cpu" else 8


def hash_encoder(encoder: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all weights and buffers, and the network's name if it has one; over
    the choice of features and the normalisation too, where they are not the last layer and ImageNet's."""
    digest = hashlib.sha256(str(getattr(encoder, "name", "")).encode())
    for name, t in sorted(encoder.state_dict().items()):
        digest.update(f"|{name}|{t.dtype}|{list(t.shape)}|".encode())
        digest.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    if not is_plain(encoder):
        about = describe(encoder)
        digest.update(f"|{about['features']}|{about['mean']}|{about['std']}|".encode())
    return digest.hexdigest()


def _return_freed_memory() -> None:
    """glibc keeps what a thread frees for that thread: each worker would hold on to its largest photograph."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library
        pass


class _Room:
    """Lets threads in while their pixels together are at most ``total``, and a larger photograph when it is alone."""

    def __init__(self, total: int) -> None:
        self.total, self.used, self.changed = total, 0, threading.Condition()

    @contextmanager
    def visit(self) -> Iterator[Callable[[int], None]]:
        """Gives the function that waits for room for a number of pixels; they are given back at the end."""
        held = 0

        def admit(pixels: int) -> None:
            nonlocal held
            with self.changed:
                self.changed.wait_for(lambda: self.used == 0 or self.used + pixels <= self.total)
                self.used, held = self.used + pixels, pixels

        try:
            yield admit
        finally:
            if held >= _LARGE:
                _return_freed_memory()
            with self.changed:
                self.used -= held
                self.changed.notify_all()


class Extractor:
    """Photographs -> features [5, 2F] of a frozen encoder.

    Args:
        encoder: any module, images [N, 3, crop, crop] normalised by its mean and std (``encoders.normalization``) ->
            h [N, F]; moved to ``device`` and set to eval mode.
        crop: side of the crops, pixels.
        view: viewing size, to which larger photographs are shrunk first: pixels of the longer side, or "full".
        device: where the encoder runs.
        batch: photographs per call of the encoder; each is ten crops. None: see ``photographs_per_call``.
        workers: threads that decode. The photographs being decoded have at most ``PIXELS_TOGETHER`` pixels together, 7
            to 14 bytes each (alpha takes the most), so memory is bounded by them and twice ``batch`` sets of crops,
            whatever the number of files, their sizes and the number of workers.
        cache: a folder for features of files, by the hashes of encoder and file; None keeps none. A cache file that cannot
            be read counts as missing.
        truncated: "skip" or "read", see ``data.decode.Limits``.
        runtime: what runs the encoder, "torch" or, on a CPU, "openvino", see ``runtimes``.

    Attributes:
        cut_off: paths of truncated photographs that were read all the same (as a set, in the order they were met).
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        crop: int = 224,
        view: int | str = FULL,
        device: torch.device | str = "cpu",
        batch: int | None = None,
        workers: int = 2,
        cache: str | os.PathLike | None = None,
        truncated: str = "skip",
        runtime: str = "torch",
    ) -> None:
        Limits(truncated=truncated)
        check_runtime(runtime, torch.device(device))
        for name, given in (("crop", crop), ("workers", workers)):
            checks.integer(name, given, 1)
        self.device = torch.device(device)
        batch = photographs_per_call(batch, self.device)
        self.encoder = encoder.eval().to(self.device)
        self.crop, self.batch, self.workers = crop, batch, workers
        self.view = check_view(view)
        self.normalization = normalization(encoder)
        self.truncated = truncated
        self.cut_off: dict[str, None] = {}
        self.hash = hash_encoder(encoder)
        self._run = compile_encoder(self.encoder, crop, runtime)
        self._room = _Room(PIXELS_TOGETHER)
        self.cache = None
        if cache is not None:
            seen = "" if self.view is None else f"-w{self.view}"
            by = "" if runtime == "torch" else f"-{runtime}"  # other rounding
            self.cache = Path(cache) / f"{self.hash[:16]}-c{crop}{seen}-v{_FORMAT}{by}"
            self.cache.mkdir(parents=True, exist_ok=True)

    @torch.inference_mode()
    def encode(self, crops: Tensor) -> Tensor:
        """uint8 [B, 2, 5, 3, crop, crop] -> features [B, 5, 2F] float32 on the CPU.

        Raises RuntimeError where the encoder gives anything but finite [N, F].
        """
        B = crops.shape[0]
        h = self._run(normalize(crops.flatten(0, 2).to(self.device), **self.normalization))
        if h.dim() != 2 or h.shape[0] != B * SCALES * CROPS:
            raise RuntimeError(f"encoder must give [N, F] = [{B * SCALES * CROPS}, F], got {list(h.shape)}")
        h = h.float().cpu()
        if not bool(torch.isfinite(h).all()):
            raise RuntimeError("encoder must give finite features, got NaN or infinity: are its weights sound?")
        return by_crop(h)

    def admission(self) -> AbstractContextManager[Callable[[int], None]]:
        """Gives the function ``admit`` of ``read_photo``, which waits until ``PIXELS_TOGETHER`` leaves room for a photograph;
        its pixels are counted until the end of the block."""
        return self._room.visit()

    def __call__(self, photos: Sequence[Tensor]) -> Tensor:
        """Photographs uint8 [3, H, W], of any sizes, on any device -> features [n, 5, 2F] float32 on the CPU."""
        parts = [photos[i : i + self.batch] for i in range(0, len(photos), self.batch)]
        return torch.cat([self.encode(torch.stack([views(p, self.crop, self.view) for p in part])) for part in parts])

    def _load(self, path: str) -> tuple[Tensor | None, Tensor | None, Path | None] | PhotoError:
        """(cached features, crops, place in the cache) of a file, one of the first two None; in a worker thread."""
        place = None
        if self.cache is not None:
            try:
                place = self.cache / f"{hash_file(path)}.safetensors"
            except OSError as error:
                return PhotoError(str(path), error.strerror or str(error))
            found = _read_cached(place)
            if found is None and self.truncated == "read":  # kept apart, so that "skip" does not find them
                found = _read_cached(place.with_stem(place.stem + _TRUNCATED))
                if found is not None:
                    self.cut_off[path] = None
            if found is not None:
                return found, None, place
        with self._room.visit() as admit:
            try:
                remarks: list[str] = []
                photo = read_photo(path, truncated=self.truncated, admit=admit, note=remarks.append)
                for remark in remarks:
                    if is_truncated(remark):
                        self.cut_off[path] = None
                        place = None if place is None else place.with_stem(place.stem + _TRUNCATED)
                    else:
                        log_remark(printable(path), remark)
                return None, views(photo, self.crop, self.view), place
            except PhotoError as error:
                return error

    def stream(self, paths: Iterable[str | os.PathLike]) -> Iterator[tuple[str, Tensor | PhotoError]]:
        """Files -> (path, features [5, 2F] or the PhotoError), in the order given, in bounded memory."""
        pending: deque[tuple[str, Future]] = deque()
        paths = iter(paths)
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                while True:
                    # a batch ahead, as crops, so that decoding goes on while the encoder works
                    while len(pending) < self.batch + self.workers and (path := next(paths, None)) is not None:
                        pending.append((os.fspath(path), pool.submit(self._load, os.fspath(path))))
                    if not pending:
                        return
                    group = [pending.popleft() for _ in range(min(self.batch, len(pending)))]
                    yield from self._finish([(path, future.result()) for path, future in group])
            finally:
                for _, future in pending:
                    future.cancel()

    def _finish(self, group: list[tuple]) -> Iterator[tuple[str, Tensor | PhotoError]]:
        """Encode those of a group that have crops but no features yet, and hand out all."""
        todo = [r for _, r in group if not isinstance(r, PhotoError) and r[0] is None]
        encoded = iter(self.encode(torch.stack([crops for _, crops, _ in todo]))) if todo else iter(())
        for path, result in group:
            if isinstance(result, PhotoError):
                yield path, result
                continue
            features, _, place = result
            if features is None:
                features = next(encoded)
                if place is not None:
                    _write_cached(place, features)
            yield path, features


def _read_cached(place: Path) -> Tensor | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(place)["features"]
    except (OSError, SafetensorError, KeyError):
        return None


def _write_cached(place: Path, features: Tensor) -> None:
    """At once: a killed process leaves no half-written file under the final name."""
    from safetensors.torch import save

    with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".", delete=False) as file:
        file.write(save({"features": features.contiguous()}))
    os.replace(file.name, place)


@dataclass(frozen=True)
class Features:
    """Features of the files that could be read."""

    values: Tensor  # [n, 5, 2F] float32
    kept: list[int]  # [n] positions in the list of files
    failed: dict[int, PhotoError]  # position -> why


def extract(
    extractor: Extractor, paths: Sequence[str | os.PathLike], *, progress: bool = True, label: str = ""
) -> Features:
    """Features of many files, with a progress bar on stderr. Unreadable files are left out and listed in ``failed``.

    Raises ValueError where no file can be read, naming the first.
    """
    from tqdm import tqdm

    if not paths:
        raise ValueError("paths must name at least one file, got none")
    values, kept, failed = None, [], {}
    bar = tqdm(extractor.stream(paths), total=len(paths), desc=label or "features", unit="image", disable=not progress)
    for i, (_, result) in enumerate(bar):
        if isinstance(result, PhotoError):
            failed[i] = result
            bar.set_postfix(unreadable=len(failed))
            continue
        if values is None:  # one allocation for all: the list and its concatenation would need twice the memory
            values = torch.empty(len(paths), *result.shape)
        values[len(kept)] = result
        kept.append(i)
    if values is None:
        raise ValueError(f"none of the {len(paths)} files can be read, the first is {failed[0]}")
    return Features(values[: len(kept)], kept, failed)


def extract_difference(
    extractor: Extractor,
    paths: Sequence[str | os.PathLike],
    references: Sequence[str | os.PathLike],
    *,
    progress: bool = True,
    label: str = "",
) -> Features:
    """Full reference: |features of paths[i] - features of references[i]|, crop by crop. Each reference is read once.

    An image whose reference cannot be read is left out, with the reference in ``failed``.
    """
    if len(paths) != len(references):
        raise ValueError(f"references must be one for each of {len(paths)} paths, got {len(references)}")
    once = {path: i for i, path in enumerate(dict.fromkeys(references))}
    clean = extract(extractor, list(once), progress=progress, label=f"{label} references".strip())
    row = {position: i for i, position in enumerate(clean.kept)}
    found = extract(extractor, paths, progress=progress, label=label)
    kept, failed, n = [], dict(found.failed), 0
    for i, position in enumerate(found.kept):
        reference = once[references[position]]
        if reference in clean.failed:
            failed[position] = clean.failed[reference]
            continue
        found.values[n] = (found.values[i] - clean.values[row[reference]]).abs()
        kept.append(position)
        n += 1
    return Features(found.values[:n], kept, dict(sorted(failed.items())))
