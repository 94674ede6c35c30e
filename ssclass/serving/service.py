"""The HTTP service: photos in, the champion's answers out, with the limits that keep it up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray
from starlette.types import ASGIApp

from ssclass import __version__
from ssclass.data.decoders import Decoders
from ssclass.data.images import Limits, Refused
from ssclass.data.shapes import Size
from ssclass.serving.admission import Admission
from ssclass.serving.answers import DESCRIBED, STATUSES, Answer, Answers, ServedModel
from ssclass.serving.batching import Batcher
from ssclass.serving.bodies import Bodies, Photo, Rejected
from ssclass.serving.champion import Champion
from ssclass.serving.collecting import Collector
from ssclass.serving.following import Following
from ssclass.serving.loop import Loop
from ssclass.serving.metrics import Metrics

MOST_WAITING = 256  # photos taken in and not answered yet
SECONDS = 30.0  # in which photos that were taken in must be answered
DECODE_SECONDS, DECODE_WAIT = 5, 15.0
"""Of a processor, and by the clock, for one photo."""
CONSENT = "x-collect-consent"
"""The header by which a client says, with ``yes``, that whoever owns the photos lets them be kept and labelled."""


@dataclass
class Service:
    """The parts of a running service. `limits`: what a photo must keep to; `collector`: keeps doubtful photos.

    `loop`: tells how the loop does.
    """

    following: Following
    limits: Limits
    metrics: Metrics
    key: str | None = None
    collector: Collector | None = None
    loop: Loop | None = None

    def __post_init__(self) -> None:
        self.batcher = Batcher(self.metrics.batches.observe)
        self.bodies = Bodies()
        self.decoders = Decoders(seconds=DECODE_SECONDS, wait=DECODE_WAIT)
        self.pool = ThreadPoolExecutor(4, thread_name_prefix="decode")
        self.waiting = 0

    async def answers(self, photos: list[Photo], *, consent: bool = False) -> Answers:
        """The answers of one champion to photos; Rejected. `consent`: those that it doubts may be kept."""
        champion = self.following.current
        if champion is None:
            raise Rejected(503, "there is no champion yet; GET /ready says why")
        if self.waiting + len(photos) > MOST_WAITING:
            raise Rejected(503, "too many photos wait for an answer; try again in a second")
        self.waiting += len(photos)
        try:
            async with asyncio.timeout(SECONDS):
                found = await asyncio.gather(*(self._answer(champion, photo, consent) for photo in photos))
        except TimeoutError:
            raise Rejected(503, f"no answer within {SECONDS:.0f} s; try again, with fewer photos at a time") from None
        finally:
            self.waiting -= len(photos)
        if all(each.error is not None for each in found):
            told = found[0].error if len(found) == 1 else f"none of {len(found)} photos can be read: {found[0].error}"
            raise Rejected(422, f"{told}; send a photo that opens")
        named = champion.named
        return Answers(
            model=ServedModel(name=champion.name, version=named.version, decision=named.key), predictions=found
        )

    async def _answer(self, champion: Champion, photo: Photo, consent: bool) -> Answer:
        loop = asyncio.get_running_loop()
        try:
            image = await loop.run_in_executor(self.pool, self._decode, photo.data, champion.size)
        except Refused as error:
            self.metrics.photos.labels("refused").inc()
            return Answer(name=photo.name, error=f"{error.reason}: {error.detail}")
        odds = await asyncio.wrap_future(self.batcher.submit(champion, image))
        best = int(odds.argmax())
        sure = None if champion.sure is None else bool(odds[best] >= champion.sure)
        self.metrics.photos.labels({None: "unknown", True: "sure", False: "unsure"}[sure]).inc()
        self.metrics.labels.labels(champion.classes[best]).inc()
        if self.loop is not None:
            self.loop.answered(champion.classes[best], sure)
        if sure is False and consent and self.collector is not None:
            self.collector.offer(photo.data)
        return Answer(
            name=photo.name,
            label=champion.classes[best],
            probability=float(odds[best]),
            sure=sure,
            probabilities={name: float(value) for name, value in zip(champion.classes, odds, strict=True)},
        )

    def _decode(self, data: bytes, size: Size) -> NDArray[np.uint8]:
        return self.decoders.decode(data, size, self.limits)

    def state(self) -> dict[str, Any]:
        """What `/ready` says: which model answers, and what is amiss."""
        current, refused = self.following.current, self.following.refused
        asked = self.following.asked_at
        return {
            "ready": current is not None,
            "version": current and current.named.version,
            "decision": current and current.named.key,
            "engine": current and current.engine.name,
            "sure": current and current.sure,
            "asked_seconds_ago": None if asked is None else round(time.monotonic() - asked, 1),
            "away": self.following.away,
            "refused": refused and {"version": refused[0].version, "why": refused[1]},
        }

    def counted(self) -> bytes:
        """The metrics, those of the moment included."""
        current = self.following.current
        self.metrics.waiting.set(self.waiting)
        self.metrics.version.set(int(current.named.version) if current else 0)
        self.metrics.away.set(self.following.away is not None)
        self.metrics.refused.set(self.following.refused is not None)
        if self.loop is not None:
            self.loop.count(None if current is None else current.unsure_share)
        return self.metrics.text()

    def end(self) -> None:
        """Stop the threads and processes."""
        self.following.end()
        self.batcher.end()
        if self.collector is not None:
            self.collector.end()
        if self.loop is not None:
            self.loop.end()
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.decoders.close()


def application(service: Service, *, local: bool) -> ASGIApp:
    """The service as an ASGI application. `local`: it is reached by the names of this machine only."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.following.start()
        if service.loop is not None:
            service.loop.start()
        yield
        await asyncio.to_thread(service.end)

    app = FastAPI(
        title="ssclass",
        version=__version__,
        description="What is on a photo, by the champion of the registry.",
        lifespan=lifespan,
        redoc_url=None,
    )

    @app.exception_handler(Rejected)
    async def rejected(request: Request, error: Rejected) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status == 503 else None
        return JSONResponse({"error": error.detail}, error.status, headers)

    @app.post("/predict", response_model=Answers, responses=STATUSES, openapi_extra=DESCRIBED)
    async def predict(request: Request, response: Response) -> Answers:
        """Say what is on one or many photos: multipart files, the bytes of one photo, or base64 in JSON."""
        began, status = time.monotonic(), 500
        try:
            async with service.bodies.photos(request) as photos:
                consent = request.headers.get(CONSENT, "").strip().lower() == "yes"
                found = await service.answers(photos, consent=consent)
            status = 200
            response.headers["X-Model-Version"] = found.model.version
            return found
        except Rejected as error:
            status = error.status
            raise
        finally:
            service.metrics.requests.labels(str(status)).inc()
            service.metrics.seconds.observe(time.monotonic() - began)

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether the process works."""
        well = service.batcher.alive and service.following.alive
        return JSONResponse({"status": "ok" if well else "a thread has ended"}, 200 if well else 500)

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Whether a champion answers, which one, and what is amiss."""
        state = service.state()
        return JSONResponse(state, 200 if state["ready"] else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counts for Prometheus."""
        return Response(service.counted(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return Admission(app, service.key, local=local)
