"""The FastAPI service: api, routing, dispatch, results, metrics."""
