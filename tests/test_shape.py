"""Rules about the shape of the code: sizes of functions and constructors, and the tests' own rules."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import grimp

TESTS = Path(__file__).parent
PACKAGES = ("app", "client", "cli", "controller", "training", "workers")
MOST_LINES = 60
MOST_POSITIONAL = 6
PUBLIC_ALL_THE_SAME = "os._exit"  # documented
PRIVATE_IN_TEXT = re.compile(r"[\w.]+\._[a-z]\w*")  # a target of `patch`, or code for another process
BY_NAME = {"setattr", "getattr", "delattr", "hasattr"}


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """The syntax nodes of a file, its module first."""
    return tuple(ast.walk(ast.parse(path.read_text())))


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
        for node in nodes(path)
        if isinstance(node, ast.Attribute | ast.ImportFrom | ast.Call | ast.Constant)
        for name in private_names(node)
        if name != PUBLIC_ALL_THE_SAME
    ]
    assert found == [], "what a test must set is a parameter; what it must see is an attribute for all"


def test_no_test_imports_from_another_test_module() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{node.lineno} {node.module}"
        for path in TESTS.rglob("*.py")
        for node in nodes(path)
        if isinstance(node, ast.ImportFrom) and re.search(r"(^|\.)test_", node.module or "")
    ]
    assert found == [], (
        "what several modules use belongs into a conftest.py or a module named for what it holds"
    )


def definitions(*kinds: type[ast.AST]) -> Iterator[tuple[str, Any]]:
    """The definitions of these kinds in all packages, each with its place."""
    for package in PACKAGES:
        for path in sorted((TESTS.parent / package).rglob("*.py")):
            for node in nodes(path):
                if isinstance(node, kinds):
                    yield f"{path.relative_to(TESTS.parent)}:{getattr(node, 'lineno', 0)}", node


def test_no_two_modules_share_a_file_name() -> None:
    paths = [each for package in PACKAGES for each in (TESTS.parent / package).rglob("*")]
    names = Counter(
        each.name
        for each in paths
        if each.suffix in {".py", ".lua", ".js"} and each.stem not in {"__init__", "__main__", "main"}
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_no_imports_are_circular() -> None:
    graph = grimp.build_graph("modelyard", *(each for each in PACKAGES if each != "client"))
    found = [
        module
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
        if graph.chain_exists(importer=imported, imported=module)
    ]
    assert found == [], "not under TYPE_CHECKING either"


def test_no_function_is_longer_than_a_screen() -> None:
    found = [
        f"{place} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for place, node in definitions(ast.FunctionDef, ast.AsyncFunctionDef)
        if node.end_lineno - node.lineno + 1 > MOST_LINES
    ]
    assert found == []


def test_no_constructor_takes_many_positional_arguments() -> None:
    assert [f"{place} {node.name}" for place, node in definitions(ast.ClassDef) if takes_many(node)] == []


def takes_many(node: ast.ClassDef) -> bool:
    """Whether a class needs more positional arguments than a reader can tell apart."""
    declared = " ".join(ast.unparse(each) for each in (*node.decorator_list, *node.bases, *node.keywords))
    if "dataclass" in declared or "Struct" in declared:
        needed = [each for each in node.body if isinstance(each, ast.AnnAssign) and each.value is None]
        return len(needed) > MOST_POSITIONAL and "kw_only=True" not in declared
    return any(
        len(each.args.posonlyargs) + len(each.args.args) - 1 > MOST_POSITIONAL
        for each in node.body
        if isinstance(each, ast.FunctionDef) and each.name == "__init__"
    )


DOCUMENTED = {"_asdict", "_exit", "_replace"}  # of named tuples and `os`


def test_private_members_of_libraries_are_used_only_in_files_that_say_so() -> None:
    found = [
        f"{path.relative_to(TESTS.parent)}:{node.lineno} {ast.unparse(node)}"
        for package in PACKAGES
        for path in sorted((TESTS.parent / package).rglob("*.py"))
        if "\nRelies on: " not in (docstring(path) or "")
        for known in [DOCUMENTED | own_names(path)]
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in known
    ]
    assert found == [], "a shortcut around a library says at its head what it relies on"


def docstring(path: Path) -> str | None:
    module = nodes(path)[0]
    assert isinstance(module, ast.Module)
    return ast.get_docstring(module)


def own_names(path: Path) -> set[str]:
    """The names that a module, or an instance of one of its classes, defines."""
    names: set[str] = set()
    for node in nodes(path):
        match node:
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.Name(id=name, ctx=ast.Store())
            ):
                names.add(name)
            case ast.Attribute(attr=name, ctx=ast.Store()):
                names.add(name)
    return names


def test_every_lua_script_begins_with_its_keys_arguments_and_answer() -> None:
    for path in (TESTS.parent / "app" / "redis" / "lua").glob("*.lua"):
        head = "\n".join(re.findall(r"^--.*", path.read_text(), re.MULTILINE))
        wanted = [] if "see include/" in head else ["-- KEYS  ", "-- ARGV  ", "-- Answers "]
        assert [each for each in wanted if each not in head] == [], path.name
