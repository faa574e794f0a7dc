"""A bare FastAPI handler that reads the body and answers a constant: what HTTP alone costs."""

from fastapi import FastAPI, Request

app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> dict[str, int]:
    """Answer always the same."""
    await request.body()
    return {"prediction": 7}
