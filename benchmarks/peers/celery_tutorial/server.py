"""The FastAPI side: send a task, wait for its AsyncResult, or hand out its id."""

import asyncio

from celery.result import AsyncResult
from fastapi import FastAPI
from pydantic import BaseModel
from tasks import app as celery
from tasks import predict as task

app = FastAPI()
POLL_S = 0.005
WAIT_S = 10


class Digit(BaseModel):
    """The request."""

    data: list[list[list[list[float]]]]


@app.post("/predict")
async def predict(digit: Digit) -> dict[str, int]:
    """Classify one sample; answer when the task is done."""
    result = task.delay(digit.data)
    async with asyncio.timeout(WAIT_S):
        while not result.ready():  # noqa: ASYNC110  (so tutorials wait; there is no event)
            await asyncio.sleep(POLL_S)
    return {"prediction": result.get()}


@app.post("/jobs", status_code=202)
async def submit(digit: Digit) -> dict[str, str]:
    """Send a task and answer its id."""
    return {"id": task.delay(digit.data).id}


@app.get("/jobs/{job_id}")
async def look_up(job_id: str) -> dict[str, object]:
    """Tell how a task stands."""
    result = AsyncResult(job_id, app=celery)
    return {"status": result.status, "prediction": result.result if result.successful() else None}
