"""Reads the aliases of the worker's model again while it serves, so that a moved alias is routed to its new version.

The registry is asked in a thread and never by a prediction. If it does not answer, the last reading stays valid.
"""

from __future__ import annotations

import json
import logging
import os
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from app.redis.registry_events import RegistryEvents
from app.registry_database import sqlite_path, written_at_ns
from app.server_errors import ModelyardError, RegistryUnavailableError, first_line
from app.settings import WorkerSettings
from workers.model_lookup import Aliases, ModelVersion, read_aliases

logger = logging.getLogger(__name__)
SERVER_S = 10.0  # between two questions to an MLflow server
DATABASE_S = 30.0  # between two looks at a database; reading it takes two seconds of a processor
UNSTAMPED_S = 300.0  # between two readings of a registry that does not show whether it has changed
FOLLOWED_S = 3.0  # between two looks if the worker follows an alias
FOLLOWED_UNSTAMPED_S = 30.0
LEAST_PAUSE_S = 0.2  # between two readings, however many changes MLflow reports
PAUSE_PER_READING = 3  # a database that changes all the time keeps a reader busy for a quarter of the time
TIMEOUT_S = 10.0
CLOCK_STEP_S = 1.0


class AliasWatch:
    """The thread that reads the aliases.

    Args:
        found: The version; holds the first reading.
        publish: Takes each reading and its age in seconds.
        pause_s: Seconds between two looks; by default as the registry allows.
        unstamped_s: Seconds between two readings of a registry that does not show whether it has changed.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        found: ModelVersion,
        publish: Callable[[Aliases, float], None],
        pause_s: float | None = None,
        unstamped_s: float = UNSTAMPED_S,
    ) -> None:
        self._settings = settings
        self._name = found.name
        self._publish = publish
        self._aliases, self._read_at_s = found.aliases, found.read_at_s
        self._uri = os.environ.get("MLFLOW_REGISTRY_URI") or settings.mlflow_tracking_uri
        self._is_server = self._uri.startswith(("http://", "https://"))
        self._pause_s = pause_s or (SERVER_S if self._is_server else DATABASE_S)
        self._unstamped_s = unstamped_s
        self._stamp = self._first_stamp()
        self._took_s = 0.0
        self._is_away = False
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._events = RegistryEvents(settings, self._hear)
        self._thread = threading.Thread(target=self._watch, name="aliases", daemon=True)

    def start(self) -> None:
        """Publish the first reading, and begin."""
        if self._read_at_s:
            self._tell()
        self._thread.start()
        self._events.start()

    def close(self) -> None:
        """Stop; a question that is under way is left to itself."""
        self._closing.set()
        self._wake.set()
        self._events.close()

    def _hear(self, model_name: str) -> None:
        if model_name == self._name:
            self._wake.set()

    def _watch(self) -> None:
        while self._is_time_to_look():
            begun_s = time.monotonic()
            self.look()
            self._took_s = 0.0 if self._is_server else time.monotonic() - begun_s

    def look(self) -> None:
        """Publish the aliases, read again if they may have changed. A registry that does not answer is logged once."""
        try:
            self._read()
        except (ModelyardError, OSError, ValueError) as error:
            if not self._is_away:
                logger.warning(
                    "the aliases of %s cannot be read again (%s); requests are routed by the last ones",
                    self._name,
                    first_line(error),
                )
            self._is_away = True

    def _is_time_to_look(self) -> bool:
        """Wait until the next look, or until MLflow reports a change; False once closed."""
        least_s = max(LEAST_PAUSE_S, PAUSE_PER_READING * self._took_s)
        self._closing.wait(least_s)
        if self._wake.wait(max(0.0, self._pause_s - least_s)):
            self._wake.clear()
            self._stamp = None
        return not self._closing.is_set()

    def _read(self) -> None:
        stamp = self._stamp if self._is_server else self._stamp_now()
        if self._is_server:
            self._aliases = _ask_server(self._uri, self._name)
        elif stamp != self._stamp:
            self._aliases = read_aliases(self._settings)
        self._stamp, self._read_at_s, self._is_away = stamp, time.monotonic(), False
        self._tell()

    def _tell(self) -> None:
        self._publish(self._aliases, time.monotonic() - self._read_at_s)

    def _stamp_now(self) -> float:
        """A value that differs once the registry may have changed: for SQLite the time of its last change."""
        path = sqlite_path(self._uri)
        if path is None:
            return time.monotonic() // self._unstamped_s
        return max(written_at_ns(path)) / 1e9

    def _first_stamp(self) -> float | None:
        """The stamp of the first reading; None if the registry may have changed since."""
        if self._is_server or sqlite_path(self._uri) is None:
            return None
        stamp = self._stamp_now()
        read_at_s = time.time() - (time.monotonic() - self._read_at_s)
        return stamp if stamp < read_at_s - CLOCK_STEP_S else None


def _ask_server(uri: str, name: str) -> Aliases:
    """The aliases of a model, from MLflow's REST API (`registered-models/get`).

    Raises:
        RegistryUnavailableError: The server does not answer, or refuses.
    """
    url = f"{uri.rstrip('/')}/api/2.0/mlflow/registered-models/get?name={quote(name, safe='')}"
    try:
        request = Request(url, headers=_authorization())  # noqa: S310  (the scheme was checked)
        with urlopen(request, timeout=TIMEOUT_S, context=_tls(uri)) as answer:  # noqa: S310
            model = json.load(answer)["registered_model"]
        newest = max((int(each["version"]) for each in model.get("latest_versions", ())), default=0)
        return Aliases({each["alias"]: int(each["version"]) for each in model.get("aliases", ())}, newest)
    except (URLError, ValueError, KeyError, TypeError) as error:
        raise RegistryUnavailableError(f"the MLflow server does not answer: {first_line(error)}") from error


def _authorization() -> dict[str, str]:
    """As MLflow's own client sends it, by the same variables."""
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        return {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _tls(uri: str) -> ssl.SSLContext | None:
    if not uri.startswith("https:"):
        return None
    context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS") == "true":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
