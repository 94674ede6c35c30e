"""The pages of the review over HTTP. Forms work without a script; the script adds the keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, quote

from fastapi import FastAPI, Form, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from ssclass.errors import SsclassError
from ssclass.pages.templating import render
from ssclass.review.desk import SUSPICIOUS, Desk
from ssclass.review.entry import Entry
from ssclass.review.queues import QUEUES
from ssclass.review.steps import Kind, Step
from ssclass.text import url_parts

SCRIPT = Path(__file__).with_name("review.js")


def application(desk: Desk) -> Entry:
    """The application that serves a desk; its `root` is part of the address that opens it."""
    app = FastAPI(title="ssclass review", docs_url=None, redoc_url=None, openapi_url=None)
    entry = Entry(app)

    def page(template: str, title: str, status: int = 200, **values: Any) -> HTMLResponse:
        shared = {"title": title, "form": entry.form, "count": len(desk.steps), "classes": desk.classes}
        shared |= {"root": entry.root, "said": desk.heard()}
        return HTMLResponse(render(f"review/{template}", **shared, **values), status)

    def done(request: Request, said: str, *, to: str = "") -> Response:
        """Back to where the form was, with a sentence on what was done."""
        desk.said = said
        return RedirectResponse(to or _back(request.headers.get("referer", ""), entry.root), 303)

    def changed(request: Request, step: Step | None, said: str) -> Response:
        """The answer to a step: JSON for the script, a redirect for a form."""
        if request.headers.get("accept", "").startswith("application/json"):
            target = "" if step is None else step.target
            stands = desk.steps.standing().get(target)
            body = {"count": len(desk.steps), "target": target, "said": said}
            return JSONResponse(body | {"words": stands.words if stands else "", "kind": stands.kind if stands else ""})
        return done(request, said)

    @app.exception_handler(SsclassError)
    def wrong(request: Request, error: SsclassError) -> Response:
        if request.headers.get("accept", "").startswith("application/json"):
            return JSONResponse({"error": str(error)}, 422)
        return page("message.html", "That cannot be done", 422, message=str(error))

    @app.middleware("http")
    async def from_our_pages(request: Request, call_next: Any) -> Response:
        """Only pages of ours change anything: their forms bring what no other page can know."""
        if request.method != "GET":
            given = request.headers.get("x-form", "")
            if not given:
                body = (await request.body()).decode("utf-8", "replace")
                given = parse_qs(body).get("form", [""])[0]
            if not entry.is_ours(given):
                return JSONResponse({"error": "this form is of another page; load the page again"}, 403)
        response: Response = await call_next(request)
        return response

    @app.get("/review.js")
    def script() -> Response:
        return Response(SCRIPT.read_text(encoding="utf-8"), media_type="text/javascript; charset=utf-8")

    @app.get("/")
    def first(request: Request) -> Response:
        desk.refresh()
        queues = [(queue, len(desk.queue(name))) for name, queue in QUEUES.items()]
        suspicious = (desk.jobs.state(SUSPICIOUS), desk.jobs.said(SUSPICIOUS), len(desk.queue(SUSPICIOUS)))
        about: dict[str, Any] = {"held": desk.held(), "queues": queues, "suspicious": suspicious}
        return page("first.html", "Review", **about, refused=desk.refused(), sent=desk.sent())

    @app.get("/held/{batch}")
    def held(request: Request, batch: str, at: int = 1) -> Response:
        job, found = desk.begin_held(batch), desk.held_batch(batch)
        standing = desk.steps.standing().get(batch)
        if found is None:
            said = desk.jobs.said(job)
            if desk.jobs.state(job) == "failed":
                return page("message.html", f"{batch} cannot be looked into", 422, message=said)
            return page("waiting.html", f"Looking into {batch}", message=said)
        shown = desk.show(found.items, at, found)
        return page(
            "held.html",
            f"Held: {batch}",
            batch=found,
            shown=shown,
            decided=standing,
            back=f"/held/{quote(batch)}",
        )

    @app.get("/photos/{name}")
    def photos(request: Request, name: str, at: int = 1) -> Response:
        items = desk.queue(name)
        if name == SUSPICIOUS:
            if desk.jobs.state(name) == "running":
                return page("waiting.html", "Looking for suspicious labels", message=desk.jobs.said(name))
            about = "Training photos whose label a cross-validation takes for wrong, the most suspicious first."
            title = "Suspicious labels"
        else:
            title, about = QUEUES[name].title, QUEUES[name].about
        shown = desk.show(items, at)
        return page("photos.html", title, about=about, shown=shown, back=f"/photos/{quote(name)}")

    @app.get("/refused/{batch}")
    def refused(batch: str) -> Response:
        found = dict(desk.refused()).get(batch, ())
        shown = [(each, desk.pictures.of_quarantine(batch, each.key)) for each in found[:200]]
        return page("refused.html", f"Refused files of {batch}", batch=batch, refused=shown, total=len(found))

    @app.get("/decided")
    def decided(request: Request) -> Response:
        outbox = desk.outbox()
        wanted = [step.target for step in (*outbox.corrections, *outbox.waits, *outbox.kept)]
        pictures = desk.pictures.of_dataset(wanted[:200])
        pictures |= desk.pictures.of_collected([step.target for step in (*outbox.labelled, *outbox.discarded)][:200])
        return page("decided.html", "Decided", outbox=outbox, pictures=pictures)

    @app.post("/step")
    def step(
        request: Request,
        kind: Annotated[Kind, Form()],
        target: Annotated[str, Form()],
        label: Annotated[str, Form()] = "",
        held: Annotated[str, Form()] = "",
    ) -> Response:
        made = desk.decide(kind, target, label, held)
        return changed(request, made, f"{target[:16]}: {made.words}.")

    @app.post("/undo")
    def undo(request: Request) -> Response:
        last = desk.steps.undo()
        return changed(request, last, "Taken back." if last else "Nothing is left to take back.")

    @app.post("/forget")
    def forget(request: Request, target: Annotated[str, Form()]) -> Response:
        desk.steps.take_back(target)
        return done(request, "Taken back.")

    @app.post("/look")
    def look(request: Request) -> Response:
        desk.jobs.drop(SUSPICIOUS)
        desk.begin_suspicious()
        return RedirectResponse(f"{entry.root}/photos/{SUSPICIOUS}", 303)

    @app.post("/send")
    def send(request: Request) -> Response:
        return done(request, " ".join(desk.send()), to=f"{entry.root}/")

    @app.post("/sent/{batch}/back")
    def back(request: Request, batch: str) -> Response:
        return done(request, desk.take_back(batch), to=f"{entry.root}/")

    return entry


def _back(referer: str, root: str) -> str:
    """The page of ours that a form was on; the first page where that is not told."""
    parts = url_parts(referer)
    if parts is None or not parts.path.startswith(f"{root}/"):
        return f"{root}/"
    return f"{parts.path}?{parts.query}" if parts.query else parts.path
