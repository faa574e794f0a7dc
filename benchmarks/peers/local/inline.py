"""A bare FastAPI handler that calls the model itself: no queue, no batches, one process."""

from fastapi import FastAPI, Request
from workload import load_model

app = FastAPI()
model = load_model()


@app.post("/predict")
async def predict(request: Request) -> dict[str, int]:
    """Classify one sample."""
    return model.run([model.read(await request.body())])[0]
