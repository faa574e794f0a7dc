"""The measured quality of a model version: selects the value in MLflow that belongs to the version."""

from __future__ import annotations

import re
import sys
from math import isnan, nan
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
DATASET_TAG = "modelyard.eval_dataset"  # of a version: the digest of their data set
CONTEXT = "mlflow.data.context"  # MLflow's tag of an input of a run: what the data set was used for
LOGGED_MODEL = re.compile(r"models:/(m-\w+)$")
VERSION = re.compile(r"models:/([^/]+)/(\d+)$")
NOT_THERE = "RESOURCE_DOES_NOT_EXIST"


class Quality(msgspec.Struct, frozen=True):
    """The value of the metric that ranks a version, and its origin.

    Attributes:
        value: Value of the metric, of val_accuracy a fraction in [0, 1]; None if there is none.
        source: `model` if it was logged for the version's logged model, `run` if it comes from its run, `tag` if it
            is a tag of the version.
        dataset: Name of its data set, empty if none was logged with it.
        dataset_digest: MLflow's digest of that data set.
        dataset_rows: Its number of rows; 0 if unknown.
        correct: Which rows it got right, see `packed_rows`; empty if unknown.
        warnings: Why there is no value, or what is wrong with it.
    """

    value: float | None = None
    source: Literal["", "model", "run", "tag"] = ""
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
    # MLflow's databases keep infinity as the largest number. Each comparison with NaN is false.
    if value is None or (0 <= value <= 1 if metric == VAL_ACCURACY else abs(value) < sys.float_info.max):
        return ""
    if metric != VAL_ACCURACY:
        return f"{metric} {value:g} is ignored: expected a finite number"
    percentage = ", not a percentage" if 1 < value <= 100 else ""
    return f"val_accuracy {value:g} is ignored: expected a fraction in [0, 1]{percentage}"


def read_quality(client: Any, version: Any, key: str = VAL_ACCURACY) -> Quality:
    """Read the quality of a registered version.

    A metric of the version's logged model comes first, then its run's, unless another model was registered from
    that run: a run keeps one value per metric, whichever model it was logged for. A version without a usable metric
    has the value of its tag of that name.

    Args:
        client: An `mlflow.MlflowClient`.
        version: An MLflow `ModelVersion`.
        key: The metric that ranks the version.

    Raises:
        MlflowException: The registry does not answer.
    """
    found = _logged_quality(client, version, key)
    tagged = (version.tags or {}).get(key)
    return found if found.value is not None or tagged is None else _tagged_quality(version, key, tagged)


def _logged_quality(client: Any, version: Any, key: str) -> Quality:
    run = None
    if version.run_id:
        run = _or_none(client.get_run, version.run_id)
        if run is None:
            return _none(f"its run {version.run_id} was purged from the registry, so it has no {key}")
        if run.info.lifecycle_stage == "deleted":
            restore = f"`mlflow runs restore --run-id {version.run_id}` brings it back"
            return _none(f"its run {version.run_id} was deleted, so its {key} is ignored; {restore}")
    source = _first_source(client, version)
    model = _logged_model(client, source)
    metric = max(_own_metrics(model, key), key=_moment, default=None)
    value = _value_of(client, metric) if metric else run.data.metrics.get(key) if run else None
    is_of_several = value is not None and (
        _may_be_of_another(client, run, model, metric) if metric else _is_shared(client, version, source)
    )
    if is_of_several:
        return _none(
            f"its run {version.run_id} logged {key} for several models, so it is ignored; log it with "
            f"`model_id` for each of them, tag the version with {key}, or log one model per run"
        )
    if problem := figure_problem(key, value):
        return _none(problem)
    if value is None:
        return Quality()
    dataset, digest = _dataset(version, run, metric)
    return Quality(value, "model" if metric else "run", dataset, digest, _rows(version, run, digest))


def _tagged_quality(version: Any, key: str, tagged: str) -> Quality:
    try:
        value = float(tagged)
    except ValueError:
        return _none(f"its tag {key} is ignored: expected a number, not {tagged!r}")
    if problem := figure_problem(key, value):
        return _none(f"its tag {problem}")
    digest = _dataset_tag(version)
    return Quality(value, "tag", "", digest, _rows(version, None, digest))


def _none(warning: str) -> Quality:
    return Quality(warnings=(warning,))


def _logged_model(client: Any, source: str) -> Any:
    found = LOGGED_MODEL.match(source)
    return _or_none(client.get_logged_model, found[1]) if found else None


def _own_metrics(model: Any, key: str) -> list[Any]:
    """The metrics that were logged for the model itself.

    A new logged model starts with copies of its run's metrics, which are older than the model.
    """
    return [each for each in _metrics(model, key) if each.timestamp >= model.creation_timestamp]


def _metrics(model: Any, key: str) -> list[Any]:
    return [each for each in model.metrics or () if each.key == key] if model else []


def _moment(metric: Any) -> tuple[int, int]:
    return metric.timestamp, metric.step


def _value_of(client: Any, metric: Any) -> float:
    """The value of a logged model's metric. MLflow's databases keep NaN as 0 there; the run knows which it was."""
    if metric.value == 0 and metric.run_id:
        history = _or_none(client.get_metric_history, metric.run_id, metric.key) or ()
        if any(isnan(each.value) and _moment(each) == _moment(metric) for each in history):
            return nan
    return float(metric.value)


def _may_be_of_another(client: Any, run: Any, model: Any, metric: Any) -> bool:
    """Whether the last metric of a logged model may have been measured on another model of its run.

    Without `model_id`, MLflow adds a run's metric to one of the models that the run has logged, and not always to the
    last one. So where a later model has no metric of its own, and the values before and after that differ, the last
    value may be its.
    """
    if run is None or metric.run_id != run.info.run_id or not run.outputs:
        return False
    steps = {each.model_id: each.step for each in run.outputs.model_outputs}
    own_step = steps.pop(model.model_id, None)
    found = (_or_none(client.get_logged_model, name) for name, step in steps.items() if step == own_step)
    others = [each for each in found if each is not None]
    of_others = {_moment(each) for other in others for each in _own_metrics(other, metric.key)}
    values = [each for each in _metrics(model, metric.key) if _moment(each) not in of_others]
    for other in others:
        if other.creation_timestamp > model.creation_timestamp and not _own_metrics(other, metric.key):
            began_ms = (model.creation_timestamp, other.creation_timestamp)
            since_ms = max(each for each in began_ms if each <= metric.timestamp)
            if any(each.timestamp < since_ms and each.value != metric.value for each in values):
                return True
    return False


def _dataset(version: Any, run: Any, metric: Any) -> tuple[str, str]:
    """Name and digest of a figure's data set, of the metric, or else of its run or a tag of the version."""
    if metric and metric.dataset_digest:
        return metric.dataset_name or "", metric.dataset_digest
    is_of_run = run and (metric is None or metric.run_id == run.info.run_id)
    named = _dataset_of_run(run) if is_of_run else None
    return named or ("", _dataset_tag(version))


def _dataset_of_run(run: Any) -> tuple[str, str] | None:
    """Name and digest of the only data set that a run names for its validation.

    It is the input with the context `validation`, or else the one without a context: the `dataset=` of a metric.
    """
    by_context: dict[str, set[tuple[str, str]]] = {}
    for each in run.inputs.dataset_inputs if run.inputs else ():
        context = next((tag.value for tag in each.tags or () if tag.key == CONTEXT), "")
        by_context.setdefault(context, set()).add((each.dataset.name or "", each.dataset.digest or ""))
    found = by_context.get("validation") or by_context.get("") or set()
    return found.pop() if len(found) == 1 else None


def _dataset_tag(version: Any) -> str:
    return str((version.tags or {}).get(DATASET_TAG, ""))


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
