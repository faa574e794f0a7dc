"""The controller's HTTP server and API."""
