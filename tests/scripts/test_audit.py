"""The dependency audit passes only where packages were looked up and are sound, or says that it was skipped."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "audit.py"
SOUND = {"name": "a", "version": "1", "vulns": []}
UNKNOWN = {"name": "b", "skip_reason": "not found"}
VULNERABLE = {"name": "c", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit_script", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "audit_script", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("packages", "stderr", "status", "text"),
    [
        ([SOUND, UNKNOWN], "", 0, "1 packages audited by pypi, 0 vulnerabilities"),
        ([SOUND, VULNERABLE], "", 1, "c 2: PYSEC-1, fixed in 3"),
        ([UNKNOWN], "", 0, "SKIPPED"),
        (None, "requests.exceptions.ConnectionError: no route", 0, "SKIPPED"),
        (None, "KeyError: a bug", 1, "KeyError: a bug"),
    ],
)
def test_a_pass_means_that_packages_were_looked_up(
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    packages: list[dict[str, object]] | None,
    stderr: str,
    status: int,
    text: str,
) -> None:
    answer = "" if packages is None else json.dumps({"dependencies": packages})
    code = f"import sys; sys.stdout.write({answer!r}); sys.stderr.write({stderr!r}); sys.exit({status})"
    monkeypatch.setattr(audit, "command", lambda *_: [sys.executable, "-c", code])
    monkeypatch.setattr(audit, "lock_groups", lambda _: [[tmp_path / "a.lock"]])
    assert audit.main() == status
    captured = capsys.readouterr()
    assert text in captured.out + captured.err


def test_pip_audit_reads_every_lock(audit: ModuleType) -> None:
    folder = SCRIPT.parents[1] / "requirements"
    groups = audit.lock_groups(folder)
    assert sorted(lock for group in groups for lock in group) == sorted(folder.glob("*.lock"))
    for group in groups:
        line = [*audit.command("pypi", group), "--dry-run"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "would have audited" in done.stdout + done.stderr
