"""The same crops decoded by NVIDIA DALI (extra ``dali``): regions of JPEG files instead of whole ones.

DALI's CPU decoders give Pillow's pixels bit for bit (JPEG by the same libjpeg-turbo, PNG), so a batch is the same as
that of ``References``, and so is what is skipped: headers, limits and every doubtful file are Pillow's. A photograph
that is not a plain JPEG or PNG (CMYK, alpha, palettes, 16 bits, animations, other formats, colour profiles other than sRGB, files without a clean end) is
decoded by Pillow, and counted with the reason in ``decoded``.
"""

from __future__ import annotations

import os
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import checks
from .colour import has_foreign_profile
from .crops import Part, cut, needed
from .decode import open_photo, orientation, photo_errors, upright, within
from .photos import EncodedPhotos
from .readers import Item, References, _Steps, check_range

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_MIRRORED_ROWS = (3, 4, 6, 7)  # EXIF orientations whose stored rows run against the upright axis that they lie on
_MIRRORED_COLUMNS = (2, 3, 7, 8)
_TRANSPOSED = (5, 6, 7, 8)
_SUSPECT = "in a batch that DALI gave up"
Region = tuple[int, int, int, int]  # top, left, bottom, right in the upright photograph


class DaliReferences(References):
    """``References`` whose photographs are decoded by DALI, those of a step in one run of its pipeline.

    A CPU pipeline has one thread in each loader process. A time limit holds for reading, headers and what Pillow
    decodes; a cache of decoded photographs (``cache_bytes``) is not used.

    Args:
        source: photographs in files or shards (``EncodedPhotos``).
        device: "cpu", or "cuda[:N]", where JPEG files are decoded by nvJPEG, whose pixels differ by rounding. Then
            ``loader`` starts no processes: ``workers`` are threads of the decoder, and one thread reads ahead.
        fields: those of ``References``.

    Attributes:
        decoded: photographs by decoder in this process's loader, such as {"dali": 120, "pillow: JPEG, CMYK": 3}.

    Raises:
        ValueError: DALI is not installed, another kind of source or device, a field out of range.
    """

    def __init__(self, source: EncodedPhotos, *, device: str | torch.device = "cpu", **fields) -> None:
        if not isinstance(source, EncodedPhotos):
            raise ValueError(f"source must hold encoded images (files or shards) for DALI, got {type(source).__name__}")
        _dali()
        self.device = torch.device(device)
        if self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda[:N] for DALI, got {str(device)!r}")
        super().__init__(source, **fields)
        self._threads = 1
        self._pipeline: tuple[int, object] | None = None  # process that built it, pipeline
        self._suspects: set[int] = set()  # photographs of a batch that DALI gave up

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
        """See ``References.loader``; for a device other than the CPU see the class."""
        if self.device.type == "cpu":
            options = {"workers": workers, "prefetch": prefetch, "pin_memory": pin_memory, "context": context}
            return super().loader(start_step, stop_step, **options)
        check_range(start_step, stop_step, workers, prefetch)
        self._threads, self._pipeline = max(1, workers), None
        items = read_ahead(_Steps(self).__getitem__, range(start_step, stop_step), prefetch)
        return self._judge(_pinned(items) if pin_memory else items)

    # ---- one step ----------------------------------------------------------------------------------------------------
    def _read(self, step: int) -> tuple[Tensor, list[int], dict[int, str], dict[str, int]]:
        opened: dict[int, _Opened] = {}
        parts: dict[tuple[int, Region], Part] = {}
        decoded: Counter[str] = Counter()

        def open_once(i: int) -> _Opened:
            if i not in opened:
                opened[i] = self._open(i)
                if opened[i].obstacle is not None:
                    decoded[f"pillow: {opened[i].obstacle}"] += 1
            return opened[i]

        while True:
            tried: list[int] = []
            failed: dict[int, str] = {}
            samples = list(self._samples(step, open_once, tried, failed))
            regions = [self._regions(photos, places) for photos, places in samples]
            wanted = sorted({item for sample in regions for item in sample.items()} - set(parts))
            try:
                parts |= self._decode([(opened[i], region) for i, region in wanted])
                break
            except _GivenUp as error:  # once more, with Pillow for all of the batch
                self._suspects.update(error.photos)
                for i in error.photos:
                    del opened[i]
        decoded["dali"] += sum(1 for i, _ in parts if opened[i].whole is None)
        crops = torch.zeros((self.batch_size, self.views, 3, self.crop, self.crop), dtype=torch.uint8)
        for b, (photos, places) in enumerate(samples):
            for v, place in enumerate(places):
                i = photos[v % self.references].photo
                scale = self.scales[v // self.references]
                cut(parts[i, regions[b][i]], scale, place, self.pad, out=crops[b, v])
        return crops, tried, failed, dict(decoded)

    def _regions(self, photos: list[_Opened], places: list[list[int]]) -> dict[int, Region]:
        """Photograph -> the rectangle around all that a sample needs of it."""
        found: dict[int, Region] = {}
        for v, place in enumerate(places):
            p = photos[v % self.references]
            rows, columns = needed(p.height, p.width, self.scales[v // self.references], place, self.crop)
            t, l, b, r = found.get(p.photo, (p.height, p.width, 0, 0))
            found[p.photo] = min(t, rows.start), min(l, columns.start), max(b, rows.stop), max(r, columns.stop)
        return found

    def _open(self, i: int) -> _Opened:
        """Read the file, check its header by Pillow's rules, and decode it where DALI is not to; raises PhotoError."""
        source, label, limits = self.source, self.source._label(i), self.source.limits

        def look() -> _Opened:
            data = source._read(i)
            with photo_errors(label), open_photo(data, label, limits) as image:
                turn = orientation(image)
                width, height = image.size[::-1] if turn in _TRANSPOSED else image.size
                obstacle = _obstacle(image, data) or (_SUSPECT if i in self._suspects else None)
            if obstacle is None:
                return _Opened(i, data, height, width, turn)
            whole = source.decode(i, data)
            return _Opened(i, b"", whole.shape[1], whole.shape[2], 1, obstacle, whole)

        return within(limits.max_seconds, label, look)

    def _decode(self, items: list[tuple[_Opened, Region]]) -> dict[tuple[int, Region], Part]:
        """The regions of photographs; raises _GivenUp."""
        parts = {
            (p.photo, region): Part(p.whole, 0, 0, p.height, p.width) for p, region in items if p.whole is not None
        }
        items = [(p, region) for p, region in items if p.whole is None]
        if not items:
            return parts
        pipeline = self._built()  # outside of try: its own errors are not those of a photograph
        try:
            pixels = self._run(pipeline, items)
        except RuntimeError:  # one of them broke the pipeline; which one, DALI does not always say
            self._pipeline = None
            raise _GivenUp({p.photo for p, _ in items}) from None
        for (p, region), stored in zip(items, pixels, strict=True):
            turned = np.array(upright(Image.fromarray(stored), p.turn)) if p.turn > 1 else stored
            part = Part(torch.from_numpy(turned).permute(2, 0, 1), region[0], region[1], p.height, p.width)
            parts[p.photo, region] = part
        return parts

    def _built(self) -> object:
        if self._pipeline is None or self._pipeline[0] != os.getpid():
            most = self.batch_size * self.references
            self._pipeline = os.getpid(), build_pipeline(most, self._threads, self.device)
        return self._pipeline[1]

    def _run(self, pipeline: object, items: list[tuple[_Opened, Region]]) -> list[np.ndarray]:
        """The regions of photographs as they are stored, before any turn: uint8 [h, w, 3] each."""
        stored = [p.stored(region) for p, region in items]  # row, column, rows, columns
        pipeline.feed_input("data", [np.frombuffer(p.data, np.uint8) for p, _ in items])
        pipeline.feed_input("anchor", [np.array(s[:2], np.int32) for s in stored])
        pipeline.feed_input("shape", [np.array(s[2:], np.int32) for s in stored])
        (pixels,) = pipeline.run()
        pixels = pixels if self.device.type == "cpu" else pixels.as_cpu()
        return [np.array(pixels.at(k)) for k in range(len(items))]  # copies: the next run reuses the memory

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_pipeline": None}


class _GivenUp(Exception):
    """DALI could not decode a batch of photographs."""

    def __init__(self, photos: set[int]) -> None:
        super().__init__(photos)
        self.photos = photos


@dataclass(frozen=True, eq=False)
class _Opened:
    """A photograph whose header was read, or that Pillow decoded."""

    photo: int
    data: bytes
    height: int  # upright
    width: int
    turn: int  # EXIF orientation
    obstacle: str | None = None  # why Pillow decoded it
    whole: Tensor | None = None  # then its pixels, upright

    def stored(self, region: Region) -> tuple[int, int, int, int]:
        """An upright rectangle as (row, column, rows, columns) of the pixels before they are turned."""
        top, left, bottom, right = region
        y, x, rows, columns = top, left, bottom - top, right - left
        height, width = self.height, self.width
        if self.turn in _TRANSPOSED:
            y, x, rows, columns, height, width = x, y, columns, rows, width, height
        if self.turn in _MIRRORED_ROWS:
            y = height - y - rows
        if self.turn in _MIRRORED_COLUMNS:
            x = width - x - columns
        return y, x, rows, columns


def _obstacle(image: Image.Image, data: bytes) -> str | None:
    """Why a file is not left to DALI, None where its pixels and its faults are known to be Pillow's."""
    if image.format == "JPEG":
        if image.mode not in ("RGB", "L"):
            return f"JPEG, {image.mode}"
        if has_foreign_profile(image):
            return "JPEG, colour profile"
        return None if _is_whole_jpeg(data) else "JPEG without a clean end"
    if image.format == "PNG":
        depth, colour = data[24], data[25]
        if depth != 8 or colour not in (0, 2) or "transparency" in image.info:
            return "PNG, not 8 bits of grey or colour"
        if getattr(image, "n_frames", 1) > 1:
            return "PNG, animated"
        if has_foreign_profile(image):
            return "PNG, colour profile"
        return None if data.endswith(_PNG_END) else "PNG without a clean end"
    return str(image.format)


def _is_whole_jpeg(data: bytes) -> bool:
    """Whether the markers lead from the first to the end marker without a surprise.

    Pillow reads on to the end marker and finds faults there; DALI decodes a region only as far as its last row.
    """
    at, frames = 2, 0
    while (at := data.find(b"\xff", at)) >= 0:
        code = data[at + 1] if at + 1 < len(data) else 0
        if code == 0xD9:  # end
            return frames == 1
        if code == 0xFF:  # a fill byte
            at += 1
        elif code == 0 or 0xD0 <= code <= 0xD7:  # inside a scan: a stuffed byte, a restart
            at += 2
        elif code >= 0xC0 and code != 0xD8:
            frames += code <= 0xCF and code not in (0xC4, 0xC8, 0xCC)
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        else:  # no such marker, or a second start
            return False
    return False


# ---- DALI ------------------------------------------------------------------------------------------------------------
def _dali() -> ModuleType:
    return checks.need("nvidia.dali", "reader dali needs NVIDIA DALI", "shamisa[dali]").dali


_BUILT: weakref.WeakSet = weakref.WeakSet()  # the pipelines of this process
_INHERITED: list = []  # those of its parents: destroying one would wait for threads that a fork has not
os.register_at_fork(after_in_child=lambda: _INHERITED.extend(_BUILT))


def build_pipeline(batch_size: int, threads: int, device: torch.device) -> object:
    """Encoded images, anchors and shapes -> regions as uint8 [h, w, 3], in stored orientation."""
    dali = _dali()
    from nvidia.dali import fn

    on_gpu = device.type == "cuda"
    pipeline = dali.Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=(device.index or 0) if on_gpu else None,
        prefetch_queue_depth=1,
    )
    with pipeline:
        data = fn.external_source(name="data", dtype=dali.types.UINT8, ndim=1)
        anchor = fn.external_source(name="anchor", dtype=dali.types.INT32, ndim=1)
        shape = fn.external_source(name="shape", dtype=dali.types.INT32, ndim=1)
        pixels = fn.decoders.image_slice(
            data,
            anchor,
            shape,
            axes=[0, 1],
            normalized_anchor=False,
            normalized_shape=False,
            device="mixed" if on_gpu else "cpu",
            output_type=dali.types.RGB,
            adjust_orientation=False,  # turned by the rules of read_photo, which also knows the orientation in XMP
            jpeg_fancy_upsampling=True,  # as libjpeg-turbo does; nvJPEG otherwise repeats chroma
        )
        pipeline.set_outputs(pixels)
    pipeline.build()
    _BUILT.add(pipeline)
    return pipeline


# ---- reading ahead in a thread ---------------------------------------------------------------------------------------
def read_ahead(function: Callable[[int], Item], steps: Iterable[int], depth: int) -> Iterator[Item]:
    """function(step) for each step in order, computed by one thread up to ``depth`` steps ahead."""
    pool = ThreadPoolExecutor(1)
    waiting: deque = deque()
    try:
        for step in steps:
            waiting.append(pool.submit(function, step))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _pinned(items: Iterator[Item]) -> Iterator[Item]:
    for step, crops, *rest in items:
        yield step, crops if crops is None else crops.pin_memory(), *rest
