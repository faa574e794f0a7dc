"""The tests' own shape: they use what others may use, and share what they share in the open."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
PUBLIC_ALL_THE_SAME = "os._exit"  # documented
PRIVATE_IN_TEXT = re.compile(r"[\w.]+\._[a-z]\w*")  # a target of `patch`, or code for another process
BY_NAME = {"setattr", "getattr", "delattr", "hasattr"}


def private_names(node: ast.AST) -> Iterator[str]:
    """What of somebody else's a syntax node reaches into."""
    match node:
        case ast.Attribute(value=ast.Name(id="self" | "cls")):
            return
        case ast.Attribute(attr=name) if is_private(name):
            yield ast.unparse(node)
        case ast.ImportFrom(names=names):
            yield from (each.name for each in names if is_private(each.name))
        case ast.Call(
            func=ast.Name(id=function) | ast.Attribute(attr=function),
            args=[_, ast.Constant(value=str(name)), *_],
        ) if function in BY_NAME and is_private(name):
            yield f"{function} {name}"
        case ast.Constant(value=str(text)):
            yield from (each for each in PRIVATE_IN_TEXT.findall(text))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_test_reaches_into_a_private_attribute() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{node.lineno} {name}"
        for path in TESTS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.expr | ast.stmt)
        for name in private_names(node)
        if name != PUBLIC_ALL_THE_SAME
    ]
    assert found == [], "what a test must set is a parameter; what it must see is an attribute for all"


def test_no_test_imports_from_another_test_module() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{node.lineno} {node.module}"
        for path in TESTS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and re.search(r"(^|\.)test_", node.module or "")
    ]
    assert found == [], (
        "what several modules use belongs into a conftest.py or a module named for what it holds"
    )
