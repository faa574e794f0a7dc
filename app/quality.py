"""The measured quality of a model version: selects the value in MLflow that belongs to the version."""

from __future__ import annotations

import re
from math import isfinite
from typing import Any, Literal, TypeAlias

import msgspec

VAL_ACCURACY = (
    "val_accuracy"  # the metric that ranks versions, unless `modelyard.toml` or a setting names another
)
Direction: TypeAlias = Literal["higher", "lower"]  # which value of a metric is better
CORRECT = (
    "modelyard.val_correct"  # a version's tag, or metadata: `1` or `0` for each row that val_accuracy is of
)
MOST_ROWS = 20_000  # of them: each worker publishes its own every second
ROWS_TAG = "modelyard.eval_rows"  # of a version: the number of samples that its metric was measured on
LOGGED_MODEL = re.compile(r"models:/(m-\w+)$")
VERSION = re.compile(r"models:/([^/]+)/(\d+)$")
NOT_THERE = "RESOURCE_DOES_NOT_EXIST"


class Quality(msgspec.Struct, frozen=True):
    """The value of the metric that ranks a version, and its origin.

    Attributes:
        value: Value of the metric, of val_accuracy a fraction in [0, 1]; None if there is none.
        source: `model` if it was logged for the version's logged model, `run` if it comes from its run.
        dataset: Name of its data set, empty if none was logged with it.
        dataset_digest: MLflow's digest of that data set.
        dataset_rows: Its number of rows; 0 if unknown.
        correct: Which rows it got right, see `packed_rows`; empty if unknown.
        warnings: Why there is no value, or what is wrong with it.
    """

    value: float | None = None
    source: Literal["", "model", "run"] = ""
    dataset: str = ""
    dataset_digest: str = ""
    dataset_rows: int = 0
    correct: str = ""
    warnings: tuple[str, ...] = ()


def packed_rows(rows: str) -> str:
    """A `1` or `0` for each row, as a hexadecimal number; a leading 1 keeps the number of rows."""
    return f"{int('1' + rows, 2):x}"


def with_correct_rows(quality: Quality, rows: str) -> Quality:
    """Add which rows a version got right, as its tag or metadata `modelyard.val_correct` states them."""
    problem = ""
    if not rows or quality.value is None:
        return quality
    if len(rows) > MOST_ROWS or rows.strip("01"):
        problem = f"expected `1` or `0` for each of at most {MOST_ROWS:,} rows"
    elif abs(rows.count("1") / len(rows) - quality.value) > 0.5 / len(rows):
        problem = f"{rows.count('1'):,} of {len(rows):,} rows are not its val_accuracy of {quality.value:g}"
    if problem:
        text = f"{CORRECT} is ignored: {problem}"
        return msgspec.structs.replace(quality, warnings=(*quality.warnings, text))
    return msgspec.structs.replace(quality, correct=packed_rows(rows))


def figure_problem(metric: str, value: float | None) -> str:
    """The reason why the value of a metric is invalid; empty for None, a finite number, and a fraction of val_accuracy.

    Any other value would attract all requests, or none.
    """
    if value is None or (0 <= value <= 1 if metric == VAL_ACCURACY else isfinite(value)):  # of NaN, false
        return ""
    if metric != VAL_ACCURACY:
        return f"{metric} {value:g} is ignored: expected a finite number"
    percentage = ", not a percentage" if 1 < value <= 100 else ""
    return f"val_accuracy {value:g} is ignored: expected a fraction in [0, 1]{percentage}"


def read_quality(client: Any, version: Any, key: str = VAL_ACCURACY) -> Quality:
    """Read the quality of a registered version.

    A metric of the version's logged model comes first, then its run's, unless another model was registered from
    that run: a run keeps one value per metric, whichever model it was logged for.

    Args:
        client: An `mlflow.MlflowClient`.
        version: An MLflow `ModelVersion`.
        key: The metric that ranks the version.

    Raises:
        MlflowException: The registry does not answer.
    """
    run = None
    if version.run_id:
        run = _or_none(client.get_run, version.run_id)
        if run is None:
            return _none(f"its run {version.run_id} was purged from the registry, so it has no {key}")
        if run.info.lifecycle_stage == "deleted":
            restore = f"`mlflow runs restore --run-id {version.run_id}` brings it back"
            return _none(f"its run {version.run_id} was deleted, so its {key} is ignored; {restore}")
    source = _first_source(client, version)
    metric = _own_metric(client, source, key)
    if metric:
        digest = metric.dataset_digest or ""
        rows = _rows(version, run, digest)
        return _checked(key, metric.value, "model", metric.dataset_name or "", digest, rows)
    value = run.data.metrics.get(key) if run else None
    if value is not None and _is_shared(client, version, source):
        return _none(
            f"its run {version.run_id} logged {key} for several models, so it is ignored; log it with "
            f"`model_id`, or register one model per run"
        )
    return _checked(key, value, "run")


def _checked(
    key: str,
    value: float | None,
    source: Literal["model", "run"],
    dataset: str = "",
    digest: str = "",
    rows: int = 0,
) -> Quality:
    problem = figure_problem(key, value)
    if problem or value is None:
        return _none(problem) if problem else Quality()
    return Quality(value, source, dataset, digest, rows)


def _none(warning: str) -> Quality:
    return Quality(warnings=(warning,))


def _own_metric(client: Any, source: str, key: str) -> Any:
    """The last metric that was logged for the model itself, or None.

    A new logged model starts with copies of its run's metrics, which are older than the model.
    """
    found = LOGGED_MODEL.match(source)
    model = _or_none(client.get_logged_model, found[1]) if found else None
    if model is None:
        return None
    own = [
        each for each in model.metrics or () if each.key == key and each.timestamp >= model.creation_timestamp
    ]
    return max(own, key=lambda each: (each.timestamp, each.step), default=None)


def _rows(version: Any, run: Any, digest: str) -> int:
    """Rows of a version's data set: of its tag, or of the input of its run that has the same digest; 0 if unknown."""
    tagged = (version.tags or {}).get(ROWS_TAG, "")
    if tagged.isascii() and tagged.isdigit():
        return int(tagged)
    inputs = run.inputs.dataset_inputs if run and digest and run.inputs else ()
    for each in inputs:
        if each.dataset.digest == digest:
            return _rows_of_profile(each.dataset.profile or "")
    return 0


def _rows_of_profile(profile: str) -> int:
    """The rows that MLflow's profile of a pandas or NumPy data set names; 0 if it names none."""
    try:
        found = msgspec.json.decode(profile, type=_Profile)
    except msgspec.DecodeError:
        return 0
    shape = found.features_shape
    return found.num_rows or (shape[0] if isinstance(shape, list) and shape else 0)


class _Profile(msgspec.Struct):
    num_rows: int = 0
    features_shape: list[int] | dict[str, list[int]] | None = None


def _is_shared(client: Any, version: Any, source: str) -> bool:
    """Whether another model was registered from a version's run. Copies of a version are the same model."""
    others = client.search_model_versions(f"run_id = '{version.run_id}'")
    return any(_first_source(client, each) != source for each in others)


def _first_source(client: Any, version: Any) -> str:
    """The source of a version's files; for a copy of another version, that version's source."""
    source = str(version.source or "")
    while found := VERSION.match(source):
        original = _or_none(client.get_model_version, *found.groups())
        if original is None:
            break
        source = str(original.source or "")
    return source


def _or_none(read: Any, *names: str) -> Any:
    try:
        return read(*names)
    except Exception as error:  # MLflow's; only `training` and the look-up's process import it
        if getattr(error, "error_code", None) != NOT_THERE:
            raise
        return None
