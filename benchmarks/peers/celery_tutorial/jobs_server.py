"""The FastAPI side: send a task, wait for its AsyncResult, or hand out its id."""

import asyncio
from typing import Any

from celery.result import AsyncResult
from fastapi import FastAPI
from pydantic import BaseModel
from tasks import app as celery
from tasks import predict as task

app = FastAPI()
POLL_S = 0.005
WAIT_S = 10


class Item(BaseModel):
    """The request."""

    data: list[Any]


@app.post("/predict")
async def predict(item: Item) -> dict[str, Any]:
    """Answer when the task is done."""
    result = task.delay(item.data)
    async with asyncio.timeout(WAIT_S):
        while not result.ready():  # noqa: ASYNC110  (so tutorials wait; there is no event)
            await asyncio.sleep(POLL_S)
    return result.get()


@app.post("/jobs", status_code=202)
async def submit(item: Item) -> dict[str, str]:
    """Send a task and answer its id."""
    return {"id": task.delay(item.data).id}


@app.get("/jobs/{job_id}")
async def look_up(job_id: str) -> dict[str, object]:
    """Tell how a task stands."""
    result = AsyncResult(job_id, app=celery)
    return {"status": result.status, "result": result.result if result.successful() else None}
