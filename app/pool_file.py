"""Reads and checks `modelyard.toml`: the model versions that `modelyard up` serves, and the endpoints of controllers.

All mistakes of a file are reported at once, each with its line. docs/pool.md describes the keys.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from app.quality import VAL_ACCURACY
from app.registry_database import LATEST
from app.server_errors import ConfigurationError
from app.settings import METRIC_PATTERN, Settings

BEST, CHAMPION = "best", "champion"
DEFAULT_VERSIONS: tuple[int | str, ...] = (CHAMPION, BEST, LATEST)
MOST_REPLICAS = 64
ENDPOINT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
ALIKE = 0.6  # similarity from which an unknown model of an endpoint counts as a misspelt one
Policy: TypeAlias = Literal["best", "champion", "newest"]
Cold: TypeAlias = Literal["refuse", "accept"]
KeyPath: TypeAlias = tuple[str | int, ...]  # such as ("serve", 0, "versions")
Mistakes: TypeAlias = list[tuple[KeyPath, str]]
SAID = {  # by pydantic's type of the mistake
    "bool_type": "expected `true` or `false`",
    "model_type": "this is not one table; expected [[serve]], or [endpoints.NAME] with single brackets",
}


class NamedVersion(NamedTuple):
    """A version of a registered model, written `NAME/3`."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"{self.model}/{self.version}"


class Serve(BaseModel):
    """One `[[serve]]` entry: versions of one model, and how to serve them.

    Attributes:
        model: Name of the registered model.
        versions: Numbers, aliases, `latest`, `best`, or a tag of the version such as `serve=true`.
        replicas: Workers of each version, from and to.
        device: As in the setting of workers; None leaves it to the environment.
        environment: `local` or `uv`, as `MODELYARD_ENV_MANAGER`; None leaves it to the environment.
        allow_pickle_models: As in the setting of workers.
        allow_non_finite: As in the setting of workers: whether answers may hold NaN and infinity.
        metric: The metric that ranks the versions; None leaves it to the environment.
        direction: Which value of that metric is better; stated together with it.
        task: What the outputs are; None leaves it to the versions' tags.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: str = Field(
        pattern=r"^[^/:]+$",
        description="expected the name of a registered model, which has no `/` and no `:`",
    )
    versions: tuple[int | str, ...] = DEFAULT_VERSIONS
    replicas: tuple[int, int] = (1, 1)
    device: str | None = Field(
        default=None,
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="expected `auto`, `cpu`, `cuda` or `cuda:N`",
    )
    environment: Literal["local", "uv"] | None = Field(default=None, description='expected "local" or "uv"')
    allow_pickle_models: bool | None = None
    allow_non_finite: bool | None = None
    metric: str | None = Field(
        default=None, pattern=METRIC_PATTERN, description='expected the name of a metric, such as "f1"'
    )
    direction: Literal["higher", "lower"] | None = Field(
        default=None, description='expected "higher" or "lower": which value of the metric is better'
    )
    task: Literal["classification", "regression"] | None = Field(
        default=None, description='expected "classification" or "regression"'
    )

    @field_validator("versions", mode="before")
    @classmethod
    def _several_versions(cls, value: object) -> tuple[int | str, ...]:
        given = _listed(value)
        if not given:
            raise ValueError("expected at least one version")
        return tuple(dict.fromkeys(map(_wanted_version, given)))

    @field_validator("replicas", mode="before")
    @classmethod
    def _from_and_to(cls, value: object) -> tuple[int, int]:
        ends: list[Any] = _listed(value) if isinstance(value, list | tuple) else [value, value]
        if len(ends) != 2 or not all(type(end) is int and 1 <= end <= MOST_REPLICAS for end in ends):
            raise ValueError(f"expected a number from 1 to {MOST_REPLICAS}, or two as in `[1, 4]`")
        low, high = ends
        if low > high:
            raise ValueError(f"expected the smaller number first: [{high}, {low}]")
        return low, high


class Endpoint(BaseModel):
    """One `[endpoints.NAME]` table: versions that may answer the same requests, and how one is chosen.

    Attributes:
        models: Models whose versions all belong to the endpoint.
        versions: Single versions that belong to it.
        default: Whether requests without a selector go to this endpoint.
        default_version: Version that wins ties.
        pinned: The only version that answers.
        policy: Which version is chosen: the best by its metric, the one with the alias `champion` (or the
            default version), or the newest.
        cold: Whether requests may queue for a version that has no ready worker at the moment.
        deadline_s: Deadline of requests that state none; None leaves it to the environment.
        wait_s: How long requests that state no wait wait for their outcome; None leaves it to the environment.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    models: tuple[str, ...] = ()
    versions: tuple[NamedVersion, ...] = ()
    default: bool = False
    default_version: NamedVersion | None = None
    pinned: NamedVersion | None = None
    policy: Policy = Field(default="best", description='expected "best", "champion" or "newest"')
    cold: Cold = Field(default="refuse", description='expected "refuse" or "accept"')
    deadline_s: float | None = Field(
        default=None, ge=0.001, allow_inf_nan=False, description="expected a number of seconds from 0.001"
    )
    wait_s: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="expected a number of seconds from 0"
    )

    @property
    def all_models(self) -> set[str]:
        """The models that it names, wholly or by version."""
        return {*self.models, *(each.model for each in self.versions)}

    @property
    def named_versions(self) -> dict[str, tuple[NamedVersion, ...]]:
        """The single versions that it names, by key."""
        single = {"pinned": self.pinned, "default_version": self.default_version}
        return {"versions": self.versions} | {key: (each,) for key, each in single.items() if each}

    def holds(self, model: str, version: int) -> bool:
        """Whether a version belongs to it."""
        return model in self.models or (model, version) in self.versions

    @field_validator("models", mode="before")
    @classmethod
    def _several_models(cls, value: object) -> tuple[str, ...]:
        given = _listed(value)
        if not given or not all(isinstance(each, str) and each for each in given):
            raise ValueError("expected a list of model names")
        return tuple(given)

    @field_validator("versions", mode="before")
    @classmethod
    def _several_versions(cls, value: object) -> tuple[NamedVersion, ...]:
        return tuple(map(_named_version, _listed(value)))

    @field_validator("default_version", "pinned", mode="before")
    @classmethod
    def _one_version(cls, value: object, info: ValidationInfo) -> NamedVersion:
        models, versions = info.data.get("models", ()), info.data.get("versions", ())
        names = set(models) | {each.model for each in versions}
        if type(value) is int and value >= 1 and len(names) == 1:
            return NamedVersion(names.pop(), value)
        named = _named_version(value)
        if named.model not in models and named not in versions:
            raise ValueError(f"expected a version of the endpoint; {named} does not belong to it")
        return named


def endpoint_of_model(endpoints: Mapping[str, Endpoint], model: str) -> str | None:
    """The endpoint whose policy requests for a model follow; None if that is ambiguous.

    It is the endpoint of the model's name, or else the only one that holds the whole model: of several, the only one
    that holds no other model.
    """
    if model in endpoints and model in endpoints[model].all_models:
        return model
    whole = [name for name, each in endpoints.items() if model in each.models]
    alone = [name for name in whole if endpoints[name].all_models == {model}]
    return next((names[0] for names in (alone, whole) if len(names) == 1), None)


def default_endpoint(names: Collection[str], configured: Mapping[str, Endpoint]) -> str | None:
    """The endpoint of requests that name none: the file's default, or else the only one; None if that is ambiguous.

    Args:
        names: All endpoints, also those that are not in the file.
        configured: The endpoints of the file.
    """
    stated = next((name for name, each in configured.items() if each.default), None)
    return stated or (next(iter(names)) if len(names) == 1 else None)


def may_be_cold(endpoints: Mapping[str, Endpoint], model: str, version: int) -> bool:
    """Whether requests may queue for a version without a ready worker."""
    return any(each.cold == "accept" and each.holds(model, version) for each in endpoints.values())


def is_listed(endpoints: Mapping[str, Endpoint], version: NamedVersion) -> bool:
    """Whether an endpoint names this very version."""
    return any(version in named for each in endpoints.values() for named in each.named_versions.values())


TableT = TypeVar("TableT", bound=BaseModel)


@dataclass(frozen=True)
class PoolFile:
    """The checked content of a file.

    Attributes:
        path: The file.
        serve: The entries of what to serve, in their order; a version that several entries name follows the first.
        endpoints: By name.
        lines: Line of each key.
    """

    path: Path
    serve: tuple[Serve, ...] = ()
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def place(self, *where: str | int) -> str:
        """The file and line of a key, or of the table that holds it."""
        return f"{self.path}:{_line(self.lines, where)}"


def find_pool_file(settings: Settings) -> Path | None:
    """The file of the settings, or `modelyard.toml` in the working directory; None if neither is there.

    Raises:
        ConfigurationError: The settings name a file that does not exist.
    """
    path = settings.pool_file or Path("modelyard.toml").absolute()
    if path.exists():
        return path
    if settings.pool_file:
        raise ConfigurationError(
            f"MODELYARD_FILE={settings.pool_file} does not exist; expected a file as docs/pool.md describes"
        )
    return None


def read_pool_file(path: Path) -> PoolFile:
    """Read and check a file.

    Raises:
        ConfigurationError: It cannot be read, or has mistakes; names all of them, one a line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text; expected TOML") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from None
    lines = _lines_of(text)
    mistakes: Mistakes = []
    serve = _entries(document, mistakes)
    endpoints = _endpoints(document, mistakes)
    mistakes += _contradictions(document)
    mistakes += _half_stated_metrics(document)
    unknown = document.keys() - {"serve", "endpoints"}
    mistakes += [((key,), f"`{key}` is unknown; expected [[serve]] or [endpoints.NAME]") for key in unknown]
    if mistakes:
        placed = sorted((_line(lines, where), text) for where, text in mistakes)
        raise ConfigurationError("\nmodelyard: ".join(f"{path}:{line}: {text}" for line, text in placed))
    return PoolFile(path, tuple(serve), endpoints, lines)


def _entries(document: dict[str, Any], mistakes: Mistakes) -> list[Serve]:
    tables = document.get("serve", [])
    if not isinstance(tables, list):
        mistakes.append((("serve",), "[serve] is one table; expected [[serve]], with two brackets"))
        return []
    found = [_checked(Serve, table, ("serve", index), mistakes) for index, table in enumerate(tables)]
    return [entry for entry in found if entry]


def _endpoints(document: dict[str, Any], mistakes: Mistakes) -> dict[str, Endpoint]:
    tables = document.get("endpoints", {})
    if not isinstance(tables, dict):
        mistakes.append((("endpoints",), "`endpoints` is not a table; expected [endpoints.NAME]"))
        return {}
    endpoints = {}
    for name, table in tables.items():
        where = ("endpoints", name)
        if not ENDPOINT_NAME.fullmatch(name):
            mistakes.append(
                (where, f"{name!r} is not an endpoint's name; expected letters, digits and `_.-`")
            )
        endpoint = _checked(Endpoint, table, where, mistakes)
        if endpoint and not (endpoint.models or endpoint.versions):
            mistakes.append((where, "the endpoint has no versions; expected `models` or `versions`"))
        if endpoint:
            endpoints[name] = endpoint
    return endpoints


def _checked(kind: type[TableT], table: object, where: KeyPath, mistakes: Mistakes) -> TableT | None:
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        for item in error.errors():
            key = str(item["loc"][0]) if item["loc"] else ""
            if item["type"] == "missing":
                mistakes.append((where, f"`{key}` is missing"))
            elif item["type"] == "extra_forbidden":
                mistakes.append(((*where, key), f"`{key}` is unknown; {_near(key, kind.model_fields)}"))
            else:
                described = kind.model_fields.get(key)
                text = (described and described.description) or item["msg"].removeprefix("Value error, ")
                text = SAID.get(item["type"], text)
                mistakes.append(((*where, key), f"`{key}` is {item['input']!r}: {text}" if key else text))
        return None


def _contradictions(document: Mapping[str, Any]) -> Mistakes:
    """Mistakes between tables; the tables may have others, so they are read as they were written."""
    mistakes: Mistakes = []
    given = document.get("endpoints")
    tables = given.items() if isinstance(given, dict) else ()
    endpoints = {name: each for name, each in tables if isinstance(each, dict)}
    defaults = [name for name, table in endpoints.items() if table.get("default") is True]
    for name in defaults[1:]:
        where = ("endpoints", name, "default")
        mistakes.append((where, f"only one endpoint can be the default, and {defaults[0]} is one already"))
    served = {table["model"] for table in _serve_tables(document) if isinstance(table.get("model"), str)}
    for name, table in endpoints.items():
        models, versions = (filter(_is_text, _listed(table.get(key, []))) for key in ("models", "versions"))
        named = {each.rpartition("/")[0]: "versions" for each in versions} | dict.fromkeys(models, "models")
        for model in sorted(named.keys() - served):
            # another machine may serve it; a similar name is a misspelt one
            if close := get_close_matches(model, served, 1, ALIKE):
                text = f"no [[serve]] entry serves {model}; did you mean {close[0]}?"
                mistakes.append((("endpoints", name, named[model]), text))
    return mistakes


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _serve_tables(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The `[[serve]]` tables as they were written; an empty one for an entry that is not a table."""
    given = document.get("serve")
    return [each if isinstance(each, dict) else {} for each in given] if isinstance(given, list) else []


def _half_stated_metrics(document: Mapping[str, Any]) -> Mistakes:
    """Entries with a metric but no direction, or the reverse: which value is better is then unknown."""
    mistakes: Mistakes = []
    tables = _serve_tables(document)
    for index, table in enumerate(tables):
        metric, direction = table.get("metric"), table.get("direction")
        if metric and metric != VAL_ACCURACY and direction is None:
            mistakes.append(
                (("serve", index, "metric"), f'{metric} needs `direction` beside it: "higher" or "lower"')
            )
        if direction is not None and metric is None:
            mistakes.append((("serve", index, "direction"), "`direction` needs `metric` beside it"))
        if (metric, direction) == (VAL_ACCURACY, "lower"):
            mistakes.append((("serve", index, "direction"), "of val_accuracy the higher value is better"))
        others = [each for each in tables[:index] if each.get("model") == table.get("model")]
        if any(each.get("metric") != metric and BEST in _words(each, table) for each in others):
            text = f"the entries of {table.get('model')} need one `metric`, because `best` is a version of it"
            mistakes.append((("serve", index, "metric"), text))
    return mistakes


def _words(*tables: Mapping[str, Any]) -> list[Any]:
    return [word for table in tables for word in _listed(table.get("versions", list(DEFAULT_VERSIONS)))]


def _listed(value: object) -> list[Any]:
    return list(value) if isinstance(value, list) or type(value) is tuple else [value]


def _wanted_version(value: object) -> int | str:
    text = value.strip() if isinstance(value, str) else ""
    if text and not text.isdecimal():
        return text
    number = int(text) if text else value
    if type(number) is int and number >= 1:
        return number
    raise ValueError("expected numbers from 1, aliases, `latest`, `best`, or tags such as `serve=true`")


def _named_version(value: object) -> NamedVersion:
    if isinstance(value, NamedVersion):
        return value
    match = re.fullmatch(r"([^/:]+)/([1-9]\d{0,8})", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"expected versions such as `NAME/3`, not {value!r}")
    return NamedVersion(match[1], int(match[2]))


def _near(wanted: str, names: Iterable[str]) -> str:
    close = get_close_matches(wanted, names, 1)
    return f"did you mean `{close[0]}`?" if close else f"the keys are {', '.join(sorted(names))}"


def _lines_of(text: str) -> dict[KeyPath, int]:
    """The line of each table and key at the beginning of a line; tomllib does not report them."""
    lines: dict[KeyPath, int] = {}
    table: KeyPath = ()
    counts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*(\[\[?)\s*([\w\"'-].*?)\s*\]\]?\s*(#.*)?$", line):
            names = [
                quoted or bare for quoted, bare in re.findall(r"[\"']([^\"']*)[\"']|([\w-]+)", header[2])
            ]
            if header[1] == "[[":
                counts[names[0]] = counts.get(names[0], -1) + 1
            table = (names[0], counts[names[0]], *names[1:]) if names[0] in counts else tuple(names)
            lines.setdefault(table[:1], number)
            lines.setdefault(table, number)
        elif key := re.match(r"\s*[\"']?([\w-]+)[\"']?\s*=", line):
            lines.setdefault((*table, key[1]), number)
    return lines


def _line(lines: Mapping[KeyPath, int], where: KeyPath) -> int:
    """The line of a key, or of the innermost table around it that has one; 1 if none has."""
    return next((lines[where[:n]] for n in range(len(where), 0, -1) if where[:n] in lines), 1)
