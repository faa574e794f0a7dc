from __future__ import annotations

import math
from pathlib import Path

import pytest

from cli.local_pool.free_memory import free_bytes

MEMINFO = "MemTotal: 16384 kB\nMemAvailable:    8192 kB"
MACHINE = 8192 * 1024
UNLIMITED = "9223372036854771712"  # of cgroup v1


def files(root: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def group(folder: str, limit: str, used: int, cache: int, *, is_legacy: bool = False) -> dict[str, str]:
    """The files of a control group."""
    if is_legacy:
        return {
            f"{folder}/memory.limit_in_bytes": limit,
            f"{folder}/memory.usage_in_bytes": str(used),
            f"{folder}/memory.stat": f"cache 1\ninactive_file 1\ntotal_inactive_file {cache}",
        }
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": str(used),
        f"{folder}/memory.stat": f"anon 1\ninactive_file {cache}",
    }


@pytest.mark.parametrize(
    ("own", "groups", "free"),
    [
        pytest.param("0::/", {}, MACHINE, id="no limit"),
        pytest.param("0::/", group(".", "5000", 4000, 500), 1500, id="container of cgroup v2"),
        pytest.param("0::/a/b", group("a", "5000", 4000, 0), 1000, id="limit of a group around it"),
        pytest.param("0::/a/b", group("a", "max", 4000, 0), MACHINE, id="group without a limit"),
        pytest.param(
            "9:cpu:/\n4:memory:/docker/x",
            group("memory", "5000", 4000, 500, is_legacy=True),
            1500,
            id="container of cgroup v1, which sees its own group as the root",
        ),
        pytest.param(
            "4:memory:/a\n0::/",
            group("memory", UNLIMITED, 9000, 0, is_legacy=True)
            | group("memory/a", "5000", 4000, 0, is_legacy=True),
            1000,
            id="group of cgroup v1 below one without a limit",
        ),
        pytest.param("0::/", group(".", str(2**40), 0, 0), MACHINE, id="limit above the machine"),
    ],
)
def test_free_memory_is_that_of_the_machine_or_of_a_control_group_with_less(
    tmp_path: Path, own: str, groups: dict[str, str], free: int
) -> None:
    files(tmp_path / "proc", {"meminfo": MEMINFO, "self/cgroup": own})
    files(tmp_path / "groups", groups)
    assert free_bytes(tmp_path / "proc", tmp_path / "groups") == free


def test_free_memory_is_infinite_where_the_system_does_not_tell(tmp_path: Path) -> None:
    assert free_bytes(tmp_path, tmp_path) == math.inf


def test_this_system_tells() -> None:
    assert 0 < free_bytes() < math.inf
