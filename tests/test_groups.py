"""The test run itself: what shares a pool or a registry is not dealt out to several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFTEST = "from tests.conftest import pytest_collection_modifyitems, pytest_xdist_make_scheduler\n"
TESTS = """
import os, pytest

@pytest.mark.parametrize("number", range(6))
def test_where_it_runs(number):
    with open("ran", "a") as file:
        file.write(f"{group} {os.environ['PYTEST_XDIST_WORKER']}\\n")
"""


def test_each_folder_that_shares_and_each_other_file_runs_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    files = {"tests/e2e/test_a.py": "pools", "tests/e2e/test_b.py": "pools", "tests/app/test_c.py": "file"}
    for name, group in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"group = {group!r}\n{TESTS}")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "2",
        "-p",
        "no:cacheprovider",
        "-p",
        "xdist",
        "--import-mode=importlib",
        ".",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    processes = defaultdict(list)
    for line in (tmp_path / "ran").read_text().splitlines():
        group, process = line.split()
        processes[group].append(process)
    assert {group: len(ran) for group, ran in processes.items()} == {"pools": 12, "file": 6}
    assert {group: len(set(ran)) for group, ran in processes.items()} == {"pools": 1, "file": 1}
