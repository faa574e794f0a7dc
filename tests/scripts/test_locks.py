from __future__ import annotations

import re
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements"
KINDS = ["controller", "worker", "training", "client", "flower", "all", "dev"]


def pins(kind: str) -> set[str]:
    text = (REQUIREMENTS / f"{kind}.lock").read_text()
    return {line.split(" ;")[0] for line in text.splitlines() if line and not line.startswith("#")}


def packages(kind: str) -> set[str]:
    return {pin.split("==")[0] for pin in pins(kind)}


@pytest.mark.parametrize("kind", [*KINDS, "foreign-clients", "docs"])
def test_lock_pins_exact_versions_and_names_no_place(kind: str) -> None:
    assert all(re.fullmatch(r"[\w.-]+(\[[\w,-]+\])?==[\w.]+", pin) for pin in pins(kind))
    assert not re.search(
        r"://|--|/opt|file:", (REQUIREMENTS / f"{kind}.lock").read_text().split("do not edit.")[1]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_has_the_same_version_in_every_lock(kind: str) -> None:
    assert pins(kind) <= pins("dev")


@pytest.mark.parametrize("kind", ["controller", "client", "flower"])
def test_locks_of_light_processes_hold_neither_torch_nor_mlflow(kind: str) -> None:
    assert packages(kind).isdisjoint({"torch", "mlflow", "mlflow-skinny"})


@pytest.mark.parametrize("kind", ["worker", "training", "all", "dev"])
def test_torch_is_pinned_without_a_build_so_that_its_build_can_be_chosen(kind: str) -> None:
    assert "torch" in packages(kind)
    assert not any(name.startswith(("nvidia-", "triton", "cuda-")) for name in packages(kind))
