"""The wanted workers of a pool: pure functions of the entries of `modelyard.toml` and a reading of the registry.

`desired_state` says which versions are wanted, and `difference` what must be started and stopped for them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from app.nearest import NAMED, nearest
from app.pool_file import BEST, CHAMPION, Endpoint, KeyPath, Mistakes, NamedVersion, Serve
from app.quality import VAL_ACCURACY
from app.registry_database import LATEST
from training.registry_reader import ModelReading, Question, Reading

MOST_VERSIONS = 8  # of a pool for which nothing says what to serve
PREFERENCE = (CHAMPION, BEST, LATEST)


@dataclass(frozen=True)
class Target:
    """A version to serve.

    Attributes:
        replicas: Workers of the version, from and to.
        variables: Environment variables of its workers.
        reasons: The words that named it, such as `champion`.
    """

    named: NamedVersion
    replicas: tuple[int, int] = (1, 1)
    variables: tuple[tuple[str, str], ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Desired:
    """The wanted state of the pool.

    Attributes:
        targets: The versions to serve, in the order of the entries, and of the versions of a model.
        problems: What the registry lacks, each with the key that names it.
        unmatched: Keys that name no version now and may do so later, each with a text.
        left_out: Versions that were not chosen, because nothing says what to serve and they are too many.
    """

    targets: tuple[Target, ...] = ()
    problems: tuple[tuple[KeyPath, str], ...] = ()
    unmatched: tuple[tuple[KeyPath, str], ...] = ()
    left_out: tuple[Target, ...] = ()


@dataclass(frozen=True)
class Worker:
    """A worker of the pool: the name of its service, and what it serves."""

    name: str
    named: NamedVersion
    variables: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Plan:
    """The difference between the wanted and the present state.

    Attributes:
        start: Workers to start, each with the reason.
        stop: Workers to stop, each with the reason.
        keep: The others.
    """

    start: tuple[tuple[Worker, str], ...] = ()
    stop: tuple[tuple[Worker, str], ...] = ()
    keep: tuple[Worker, ...] = field(default=())


def question_of(entries: Sequence[Serve] | None) -> Question:
    """The question to the registry for entries; None: about all models."""
    if entries is None:
        return Question(None, None)
    ranked = {entry.model: entry.metric for entry in entries if BEST in entry.versions}
    metrics = {model: metric for model, metric in ranked.items() if metric}
    return Question(tuple(sorted({entry.model for entry in entries})), tuple(sorted(ranked)), metrics)


def desired_state(
    entries: Sequence[Serve] | None,
    reading: Reading,
    replicas: int = 1,
    endpoints: Mapping[str, Endpoint] = MappingProxyType({}),
    before: Sequence[Target] = (),
) -> Desired:
    """The versions to serve.

    Args:
        entries: What to serve; None for champion, best and newest version of every model, but few versions in all.
        reading: The registry's answer to `question_of(entries)`.
        replicas: Workers of each version whose entry states no number.
        endpoints: By name; each version that they name must exist.
        before: The targets so far. Those of a model are kept while its entries name something that it lacks: an alias
            may be misspelt, or be set again in a moment.
    """
    if entries is None:
        every = [Serve(model=name) for name in sorted(reading.models)]
        return _few(desired_state(every, reading, replicas, endpoints))
    problems: Mistakes = []
    unmatched: Mistakes = []
    targets: dict[NamedVersion, Target] = {}
    for index, entry in enumerate(entries):
        where: KeyPath = ("serve", index, "versions")
        model = reading.models.get(entry.model)
        if model is None or not model.versions:
            problems.append((where, _no_model(entry.model, reading)))
            continue
        found: dict[int, list[str]] = {}
        for word in entry.versions:
            numbers = _versions_of(word, model, entry)
            is_tag = isinstance(word, str) and "=" in word
            if not numbers and "versions" in entry.model_fields_set:
                (unmatched if is_tag else problems).append((where, _no_version(word, entry, model)))
            for number in numbers:
                found.setdefault(number, []).append(f"version {word}" if word == number else str(word))
        for number in sorted(found):
            named = NamedVersion(entry.model, number)
            count = entry.replicas if "replicas" in entry.model_fields_set else (replicas, replicas)
            targets.setdefault(named, Target(named, count, _variables(entry), tuple(found[number])))
    unsettled = {entries[index].model for (_, index, _), _ in problems if isinstance(index, int)}
    for target in before:
        model = reading.models.get(target.named.model, ModelReading())
        if target.named.model in unsettled and target.named.version in model.versions:
            targets.setdefault(target.named, target)
    problems += _lacking(endpoints, reading)
    return Desired(tuple(targets.values()), tuple(problems), tuple(unmatched))


def difference(
    targets: Iterable[Target],
    counts: Mapping[NamedVersion, int],
    present: Sequence[Worker],
    stopping: Iterable[str] = (),
) -> Plan:
    """The workers to start, to stop and to keep.

    Args:
        targets: The versions to serve.
        counts: Wanted workers by version; without one, the lowest number of its target.
        present: The present workers, those that were started first at the front.
        stopping: Names of workers that are stopping, and so are neither present nor free.
    """
    start: list[tuple[Worker, str]] = []
    stop: dict[str, tuple[Worker, str]] = {}
    keep: list[Worker] = []
    names = {*stopping, *(worker.name for worker in present)}
    wanted = {target.named: target for target in targets}
    served: dict[NamedVersion, list[Worker]] = {}
    for worker in present:
        target = wanted.get(worker.named)
        if target is None:
            stop[worker.name] = (worker, f"{worker.named} is no longer wanted")
        elif target.variables != worker.variables:
            stop[worker.name] = (worker, "its options have changed")
        else:
            served.setdefault(worker.named, []).append(worker)
    for named, target in wanted.items():
        low, high = target.replicas
        count = min(max(counts.get(named, low), low), high)
        workers = served.get(named, [])
        keep += workers[:count]
        stop |= {worker.name: (worker, f"{count} of {named} are wanted") for worker in workers[count:]}
        for number in range(len(workers) + 1, count + 1):
            name = _free_name(named, names)
            names.add(name)
            reason = ", ".join(target.reasons) if number == 1 else f"{count} of {named} are wanted"
            start.append((Worker(name, named, target.variables), reason))
    return Plan(tuple(start), tuple(stop.values()), tuple(keep))


def service_name(named: NamedVersion) -> str:
    """Name of a version's first worker, of characters that files and supervisord take."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", named.model)[:80]
    if plain != named.model:
        plain += "-" + hashlib.sha256(named.model.encode()).hexdigest()[:6]
    return f"worker-{plain}-v{named.version}"


def _free_name(named: NamedVersion, taken: set[str]) -> str:
    first = service_name(named)
    replicas = (first if number == 1 else f"{first}-{number}" for number in range(1, len(taken) + 2))
    return next(name for name in replicas if name not in taken)


def _lacking(endpoints: Mapping[str, Endpoint], reading: Reading) -> Mistakes:
    """Versions that endpoints name, and that models of this pool do not have."""
    return [
        (("endpoints", name, key), _no_number(named, reading.models[named.model]))
        for name, each in endpoints.items()
        for key, versions in each.named_versions.items()
        for named in versions
        if named.model in reading.models and named.version not in reading.models[named.model].versions
    ]


def _few(desired: Desired) -> Desired:
    """Some versions of every model first, and the preferred ones of a model first."""

    def preference(target: Target) -> int:
        return min(PREFERENCE.index(reason) for reason in target.reasons)

    seen: dict[str, int] = {}
    rounds = []
    for target in sorted(desired.targets, key=preference):
        seen[target.named.model] = seen.get(target.named.model, 0) + 1
        rounds.append((seen[target.named.model], target))
    chosen = {target.named for _, target in sorted(rounds, key=lambda each: each[0])[:MOST_VERSIONS]}
    kept = tuple(target for target in desired.targets if target.named in chosen)
    left_out = tuple(target for target in desired.targets if target.named not in chosen)
    return replace(desired, targets=kept, left_out=left_out)


def _versions_of(word: int | str, model: ModelReading, entry: Serve) -> list[int]:
    if isinstance(word, int):
        return [word] if word in model.versions else []
    if word == LATEST:
        return [max(model.versions)]
    if word == BEST:
        sign = -1 if entry.direction == "lower" else 1
        ranked = [(sign * quality, version) for version, quality in model.qualities.items()]
        return [max(ranked)[1]] if ranked else []
    if "=" in word:
        name, _, value = word.partition("=")
        tag = (name.strip(), value.strip())
        return [number for number, tags in model.versions.items() if tag in tags.items()]
    number = model.aliases.get(word)
    return [number] if number in model.versions else []


def _variables(entry: Serve) -> tuple[tuple[str, str], ...]:
    values = {
        "MODELYARD_DEVICE": entry.device,
        "MODELYARD_ENV_MANAGER": entry.environment,
        "ALLOW_PICKLE_MODELS": _switch(entry.allow_pickle_models),
        "MODELYARD_ALLOW_NON_FINITE": _switch(entry.allow_non_finite),
        "MODELYARD_METRIC": entry.metric,
        "MODELYARD_METRIC_DIRECTION": entry.direction,
        "MODELYARD_TASK": entry.task,
    }
    return tuple((name, value) for name, value in values.items() if value is not None)


def _switch(value: bool | None) -> str | None:
    return None if value is None else str(value).lower()


def _no_model(name: str, reading: Reading) -> str:
    if name in reading.names:
        return f"there is no version of {name}; train one with `modelyard train`"
    others = f"its models, nearest first: {nearest(name, reading.names)}" if reading.names else "it is empty"
    return f"there is no version of {name} in the registry ({others}); train one with `modelyard train`"


def _no_version(word: int | str, entry: Serve, model: ModelReading) -> str:
    name = entry.model
    if isinstance(word, int):
        return _no_number(NamedVersion(name, word), model)
    if "=" in word:
        return f"no version of {name} has the tag {word} yet"
    if word == BEST:
        return f"no version of {name} has a {entry.metric or VAL_ACCURACY}, so none is the best"
    aliases = (
        f"its aliases, nearest first: {nearest(word, model.aliases)}" if model.aliases else "it has none"
    )
    return f"there is no alias {word} of {name}; {aliases}"


def _no_number(named: NamedVersion, model: ModelReading) -> str:
    versions = sorted(model.versions)
    shown = ", ".join(map(str, versions[-NAMED:])) or "none"
    return f"there is no version {named.version} of {named.model}; it has {'…, ' * (len(versions) > NAMED)}{shown}"
