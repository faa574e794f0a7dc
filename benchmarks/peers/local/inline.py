"""A bare FastAPI handler that calls the model itself: no queue, no batches, one process."""

import numpy as np
import orjson
from fastapi import FastAPI, Request
from network import load_network

app = FastAPI()
classify = load_network()


@app.post("/predict")
async def predict(request: Request) -> dict[str, int]:
    """Classify one sample."""
    samples = np.array(orjson.loads(await request.body())["data"], np.float32)
    return {"prediction": classify(samples)[0]}
