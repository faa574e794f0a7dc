"""The controller: HTTP, routing, dispatch, results and metrics."""
