"""The service: POST /score takes an encoded photograph and gives its score as JSON; GET / is a page for people.

Everything that a stranger sends is bounded: bytes while they arrive, pixels before they are decoded, time, uploads held
at once, requests waiting. Statuses of POST /score:

==== ==================================================================================================================
200  score, raw, scale, width, height, crops; see ``describe``
408  the upload took longer than ``max_seconds``
413  more bytes than ``max_bytes``, or more pixels than ``max_pixels``
422  not a photograph that can be read, with the reason in ``error``
503  too many requests at once, or the answer took longer than ``max_seconds``; with Retry-After
==== ==================================================================================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

import torch
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from torch import Tensor

from .. import checks
from ..data.decode import Limits, PhotoError, decode_photo, within
from ..datasets.labels import describe_scale
from ..scoring.crops import PLACES, viewed_size, views
from .batcher import Batcher, Busy

if TYPE_CHECKING:
    from ..scorer import Scorer

MAX_BYTES = 32 << 20  # of an upload
MAX_PIXELS = 50_000_000
MAX_SECONDS = 30.0  # for the upload, and again for the answer
WAITING = 256  # requests at once
TOGETHER = 8  # times max_bytes that all uploads may hold together
DISCARD_SECONDS = 2.0  # that a refused upload is read on
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PLACE_NAMES = ("top left", "top right", "bottom left", "bottom right", "centre")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Upload:
    """A decoded photograph on its way to the encoder."""

    crops: Tensor  # [2, 5, 3, crop, crop] uint8
    width: int
    height: int


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def describe(scorer: Scorer, upload: Upload, features: Tensor) -> dict:
    """The answer: score in 0..1, raw on the regressor's scale, and what each of the five places would have alone.

    features: [5, 2F] of the photograph. The raw score is the mean over the places, so the place with the lowest score pulled
    it down the most. ``full`` and ``half`` are the parts of the photograph that a place's two crops show: left, top, width,
    height in pixels.
    """
    regressor = scorer.regressor
    raw = regressor.predict(features.unsqueeze(0))
    alone = regressor.predict(features)  # each place as a photograph of one crop
    crops = [
        {
            "place": name,
            "score": regressor.quality(value).item(),
            "raw": value.item(),
            "full": _box(upload, place, scorer.extractor.crop, scorer.extractor.view),
            "half": _box(upload, place, 2 * scorer.extractor.crop, scorer.extractor.view),
        }
        for name, place, value in zip(PLACE_NAMES, PLACES, alone, strict=True)
    ]
    return {
        "score": regressor.quality(raw).item(),
        "raw": raw.item(),
        "scale": describe_scale(**regressor.scale),
        "width": upload.width,
        "height": upload.height,
        "crops": crops,
    }


def _box(upload: Upload, place: tuple[int, int], side: int, view: int | None) -> list[int]:
    """Left, top, width and height, in pixels of the photograph, of a crop of the photograph at its viewing size."""
    seen = viewed_size(upload.height, upload.width, view)
    (top, height), (left, width) = (
        tuple(round(v * n / m) for v in _span(m, where, side))
        for n, m, where in zip((upload.height, upload.width), seen, place, strict=True)
    )
    return [left, top, width, height]


def _span(n: int, where: int, side: int) -> tuple[int, int]:
    """(first pixel, pixels) of a crop along one side of n pixels; all of it where the crop is larger and mirrors it."""
    return ((0, n - side, (n - side) // 2)[where], side) if n > side else (0, n)


class Service:
    """The application for a scorer. Use: ``uvicorn.run(Service(scorer).app)``, or ``shamisa serve``.

    Args:
        scorer: see ``scorer.load_scorer``; its ``batch`` is the size of the batches under load.
        max_bytes, max_pixels, max_seconds: of a photograph, see ``data.decode.Limits``; ``max_seconds`` bounds the upload,
            and again the answer.
        waiting: requests at once; further ones get status 503.
        workers: threads that decode. The photographs being decoded have 100 megapixels together at most.
        hosts: names that requests may give as this host's; None allows any. For loopback it keeps out pages of other sites
            whose name leads here.

    Raises:
        ValueError: a limit out of range.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        max_bytes: int = MAX_BYTES,
        max_pixels: int = MAX_PIXELS,
        max_seconds: float = MAX_SECONDS,
        waiting: int = WAITING,
        workers: int = 2,
        hosts: tuple[str, ...] | None = LOOPBACK,
    ) -> None:
        self.scorer = scorer
        self.limits = Limits(max_pixels, 1, max_bytes, max_seconds, scorer.extractor.truncated)
        if not max_seconds > 0:
            raise ValueError(f"max_seconds must be more than 0 for a service, got {max_seconds!r}")
        self.waiting = checks.integer("waiting", waiting, 1)
        self.requests, self.held = 0, 0  # now: requests, bytes of uploads
        self._decoders = ThreadPoolExecutor(checks.integer("workers", workers, 1), thread_name_prefix="decoder")
        self._batcher = Batcher(self._encode, scorer.extractor.batch, waiting)
        routes = [
            Route("/", self._page),
            Route("/score", self._score, methods=["POST"]),
            Route("/health", self._health),
        ]
        names = ["[::1]" if host == "::1" else host for host in hosts] if hosts else ["*"]
        middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=names)]
        self.app = Starlette(routes=routes, middleware=middleware, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        await self._batcher.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    # ---- requests ----------------------------------------------------------------------------------------------------
    async def _page(self, _: Request) -> Response:
        return HTMLResponse(files(__package__).joinpath("page.html").read_text(encoding="utf-8"), headers=_HEADERS)

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"requests": self.requests, "encoder": self.scorer.extractor.hash[:16]})

    async def _score(self, request: Request) -> Response:
        if self.requests >= self.waiting:
            return self._refuse(Refusal(503, f"{self.waiting} requests are being answered; try again"))
        self.requests += 1
        try:
            return JSONResponse(await self._answer(request))
        except Refusal as refusal:
            return self._refuse(refusal)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        finally:
            self.requests -= 1

    def _refuse(self, refusal: Refusal) -> Response:
        headers = {"Retry-After": "1"} if refusal.status == 503 else {}
        # what was not read of an upload cannot be told from the next request
        return JSONResponse({"error": refusal.reason}, refusal.status, headers={**headers, "Connection": "close"})

    async def _answer(self, request: Request) -> dict:
        seconds, request.state.received = self.limits.max_seconds, 0
        try:
            try:
                data = await asyncio.wait_for(self._receive(request), seconds)
            except asyncio.TimeoutError:  # noqa: UP041  another class before Python 3.11
                raise Refusal(408, f"the upload took longer than max_seconds = {seconds:g}") from None
            try:
                return await asyncio.wait_for(self._compute(data), seconds)
            except asyncio.TimeoutError:  # noqa: UP041
                raise Refusal(503, f"the answer took longer than max_seconds = {seconds:g}; try again") from None
            except Busy:
                raise Refusal(503, "too many photographs are waiting; try again") from None
        finally:
            self.held -= request.state.received

    async def _receive(self, request: Request) -> bytes:
        most, announced = self.limits.max_bytes, request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > most:
            raise await self._discard(request, Refusal(413, f"has {announced} bytes, more than max_bytes = {most}"))
        pieces: list[bytes] = []
        async for piece in request.stream():
            if request.state.received + len(piece) > most:
                raise await self._discard(request, Refusal(413, f"has more than max_bytes = {most} bytes"))
            if self.held + len(piece) > TOGETHER * most:
                raise await self._discard(request, Refusal(503, "too many bytes are being uploaded; try again"))
            request.state.received += len(piece)
            self.held += len(piece)
            pieces.append(piece)
        if not request.state.received:
            raise Refusal(422, "is empty (0 bytes): send the encoded photograph as the body")
        return b"".join(pieces)

    async def _discard(self, request: Request, refusal: Refusal) -> Refusal:
        """Read on for a moment: a connection that is closed on a sender who still sends may lose the answer too."""

        async def read() -> None:
            left = TOGETHER * self.limits.max_bytes
            async for piece in request.stream():
                left -= len(piece)
                if left < 0:
                    return

        with suppress(asyncio.TimeoutError, ClientDisconnect, RuntimeError):
            await asyncio.wait_for(read(), DISCARD_SECONDS)
        return refusal

    async def _compute(self, data: bytes) -> dict:
        loop = asyncio.get_running_loop()
        try:
            upload = await loop.run_in_executor(self._decoders, self._decode, data)
        except PhotoError as error:
            large = "more than max_pixels" in error.reason or "DecompressionBomb" in error.reason  # Pillow's own limit
            raise Refusal(413 if large else 422, error.reason) from None
        return await self._batcher.submit(upload)

    # ---- work, in threads --------------------------------------------------------------------------------------------
    def _decode(self, data: bytes) -> Upload:
        extractor = self.scorer.extractor

        def work() -> Upload:
            with extractor.admission() as admit:
                photo = decode_photo(data, "upload", self.limits, admit, note=lambda remark: None)
                return Upload(views(photo, extractor.crop, extractor.view), photo.shape[2], photo.shape[1])

        return within(self.limits.max_seconds, "upload", work)

    def _encode(self, uploads: list[Upload]) -> list[dict]:
        features = self.scorer.extractor.encode(torch.stack([upload.crops for upload in uploads]))
        return [describe(self.scorer, upload, found) for upload, found in zip(uploads, features, strict=True)]
