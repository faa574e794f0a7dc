"""Prints how a registered model is served and called, and calls it if MODELYARD_URL names a controller."""

import json
import os

import requests


def show(name: str, body: object, *, settings: str = "") -> None:
    """Print the commands for the model `name`, and post `body` to the controller at MODELYARD_URL, if it is set.

    Args:
        settings: Environment variables that its worker needs.
    """
    url, written = os.environ.get("MODELYARD_URL", "http://127.0.0.1:9000"), json.dumps(body)
    print(f"{settings} MODEL_NAME={name} modelyard up".lstrip())
    print(f"curl -d '{written}' '{url}/predict?model={name}&wait=10'")
    if "MODELYARD_URL" in os.environ:
        print(requests.post(f"{url}/predict?model={name}&wait=10", json=body, timeout=20).text)
