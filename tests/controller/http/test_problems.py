"""The shape of errors: each class has a code of its own, a status, and becomes a whole problem document."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

import modelyard.errors
from app import server_errors
from app.server_errors import ModelyardError
from controller.http.problems import STATUS, problem


def tree(kind: type[ModelyardError]) -> Iterator[type[ModelyardError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ != "modelyard.client_errors":  # no controller answers with these
            yield from tree(child)


CLASSES = list(tree(ModelyardError))


def test_every_error_is_in_the_one_tree_and_the_tree_is_drawn_in_the_module() -> None:
    defined = {
        each
        for each in vars(server_errors).values()
        if isinstance(each, type) and issubclass(each, Exception)
    }
    assert defined == set(CLASSES)
    drawing = f"{server_errors.__doc__}{modelyard.errors.__doc__}"
    assert [each.__name__ for each in CLASSES if each.__name__ not in drawing] == []


def test_no_two_errors_share_a_code() -> None:
    codes = [each.code for each in CLASSES]
    assert len(set(codes)) == len(codes)
    assert all(code == code.lower().replace(" ", "_") for code in codes)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_becomes_a_problem_document(kind: type[ModelyardError]) -> None:
    status, headers, body = problem(kind("what was wrong"))
    document = json.loads(body)
    assert dict(headers)[b"content-type"] == b"application/problem+json"
    assert document.keys() == {"type", "title", "status", "code", "detail"}
    assert (document["status"], document["code"], document["detail"]) == (status, kind.code, "what was wrong")
    assert (b"retry-after" in dict(headers)) == (status in (429, 503))


def test_the_table_of_statuses_names_no_class_outside_the_tree() -> None:
    assert set(STATUS) <= set(CLASSES)


@pytest.mark.parametrize(("retry_after_s", "header"), [(0.2, b"1"), (1, b"1"), (1.1, b"2"), (60, b"60")])
def test_retry_after_is_whole_seconds_rounded_up(retry_after_s: float, header: bytes) -> None:
    _, headers, _ = problem(server_errors.QueueFullError("full", retry_after_s=retry_after_s))
    assert dict(headers)[b"retry-after"] == header
