"""What the rows of an answer become in the output of a batch, and how many rows a request holds."""

from __future__ import annotations

from typing import Any

import pytest

from modelyard.batch.batch_run import fitting_rows
from modelyard.batch.output_columns import output_columns
from modelyard.client_errors import OutputsNotJoinableError
from modelyard.schemas import Job, Prediction


def job(**of: Any) -> Job:
    return Job(
        id="x.0",
        status="succeeded",
        worker=1,
        model_name="Prices",
        model_version=3,
        val_accuracy=None,
        policy="forced",
        forced=True,
        result_url="/results/x.0",
        **of,
    )


ANSWERS: list[tuple[Any, dict[str, list[Any]]]] = [
    ([1.5, 2.5], {"output": [1.5, 2.5]}),
    ([[1, "a"], [2, None]], {"output_0": [1, 2], "output_1": ["a", None]}),
    ([[1], [2, 3]], {"output_0": [1, 2], "output_1": [None, 3]}),
    ([[[1, 2]], [[3]]], {"output": [[[1, 2]], [[3]]]}),
    ([{"a": 1}, {"b": 2}], {"a": [1, None], "b": [None, 2]}),
    ({"a": [1, 2], "b": [[3], [4]]}, {"a": [1, 2], "b": [[3], [4]]}),
]


def test_each_form_of_outputs_becomes_columns() -> None:
    for outputs, expected in ANSWERS:
        assert output_columns(job(raw_outputs=outputs), 2) == expected
    assert output_columns(job(raw_outputs={"mean": 3}), 1) == {"output": [{"mean": 3}]}
    for outputs in ([1], {"mean": 3}, "text"):
        with pytest.raises(
            OutputsNotJoinableError, match="Prices version 3 does not answer a row for each row"
        ):
            output_columns(job(raw_outputs=outputs), 2)


def test_predictions_become_classes_labels_values_and_scores() -> None:
    classified = (Prediction(predicted=1, scores=(0.2, 0.8)), Prediction(predicted=None, scores=(None, 0.1)))
    expected = {"class": [1, None], "score_0": [0.2, None], "score_1": [0.8, 0.1]}
    assert output_columns(job(predictions=classified), 2) == expected
    named = (Prediction(label="high"), Prediction(label="low"))
    assert output_columns(job(predictions=named), 2) == {"label": ["high", "low"]}
    assert output_columns(job(predictions=(Prediction(value=2.5),)), 1) == {"value": [2.5]}


def test_outputs_that_repeat_the_predictions_are_written_once() -> None:
    scored = (Prediction(predicted=1, scores=(0.25, 0.75)),)
    expected = {"class": [1], "score_0": [0.25], "score_1": [0.75]}
    assert output_columns(job(predictions=scored, raw_outputs=[[0.25, 0.75]]), 1) == expected
    named = [{"no": 0.25, "yes": 0.75}]
    assert output_columns(job(predictions=scored, raw_outputs=named), 1) == expected | {
        "no": [0.25],
        "yes": [0.75],
    }


def test_a_slow_version_gets_fewer_rows_in_a_request() -> None:
    assert fitting_rows(job(inference_ms=64.0, batch_samples=32)) == 500
    assert fitting_rows(job(inference_ms=90_000.0, batch_samples=32)) == 1
    assert fitting_rows(job()) > 65_535
