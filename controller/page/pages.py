"""The routes of the page: its files, and the stream that keeps it current."""

from __future__ import annotations

from html import escape
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from app.quality import VAL_ACCURACY
from app.server_errors import NotFoundError
from controller.admission.authentication import require
from controller.http.pool_document import pool_document
from controller.http.responses import EventResponse
from controller.pool_watcher import PoolView
from controller.services import Services
from modelyard.schemas import WorkerInfo

FOLDER = Path(__file__).parent / "static"
FILES = frozenset(
    str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file() and path.suffix != ".html"
)
_INDEX = (FOLDER / "index.html").read_text()
_COLUMNS = ("version", "state", "val_accuracy", "replicas", "backlog", "jobs done", "jobs failed")

router = APIRouter(include_in_schema=False)


@router.get("/")
async def index(request: Request) -> Response:
    """The page. Without JavaScript it shows the current pool, unless API keys are required to see it."""
    services: Services = request.state.services
    if services.access.is_guarded:
        pool = "<p>Sign in needs JavaScript.</p>"
    else:
        pool = _table(services.watcher.view, services.clock.now_ms())
    base = escape(f"{services.settings.prefix}/", quote=True)
    return Response(_INDEX.replace("{base}", base).replace("{pool}", pool), media_type="text/html")


@router.get("/page/{path:path}")
async def file(path: str) -> Response:
    """A file of the page."""
    if path not in FILES:
        raise NotFoundError("the page has no such file")
    return FileResponse(FOLDER / path)


@router.get("/events", dependencies=[require("operate")])
async def events(request: Request) -> Response:
    """The pool as a stream of server-sent events: `links` and `history` once, then `pool` each heartbeat."""
    services: Services = request.state.services
    return EventResponse(services.feed.listen())


def _table(view: PoolView, now_ms: float) -> str:
    """The pool as an HTML table, for browsers without JavaScript."""
    ready = [row for row in pool_document(view, now_ms).workers if row.rank]
    rows = []
    for row in sorted(ready, key=lambda row: row.rank or 0):
        cells = (
            f"{row.model_name} {row.model_version}",
            "ready",
            _figure(row),
            str(row.live_workers),
            f"{row.backlog_jobs:,}",
            f"{row.jobs_done:,}",
            f"{row.jobs_failed:,}",
        )
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    if not rows:
        return "<p>No worker is ready.</p>"
    head = "".join(f"<th scope=col>{name}</th>" for name in _COLUMNS)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _figure(row: WorkerInfo) -> str:
    if row.metric_value is None:
        return "unknown"
    return f"{row.metric_value:.4f}" if row.metric == VAL_ACCURACY else f"{row.metric} {row.metric_value:.5g}"
