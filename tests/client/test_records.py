from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.client_errors import RecordsError
from modelyard.records import Record, append_records

ONE = Record(timestamp="2026-01-02T03:04:05.678+00:00", client_latency_ms=1.5, status="succeeded")

APPENDS = """
import sys
from pathlib import Path
from modelyard.records import Record, append_records
path, name, n = sys.argv[1:]
for index in range(int(n)):
    job_id = f"{name}.{index}"
    append_records(Path(path), [Record(timestamp="t", job_id=job_id, client_latency_ms=1, status="succeeded")])
"""

finite = st.floats(allow_nan=False, allow_infinity=False)
records = st.builds(
    Record,
    timestamp=st.datetimes().map(lambda moment: f"{moment.isoformat()}+00:00"),
    job_id=st.none() | st.text(),
    worker=st.none() | st.integers(1, 10**6),
    model_name=st.none() | st.text(),
    model_version=st.none() | st.integers(1, 2**60),
    val_accuracy=st.none() | st.floats(0, 1),
    predicted=st.none() | st.integers(-(2**60), 2**60) | finite,
    true_label=st.none() | st.integers(0, 9),
    inference_ms=st.none() | finite,
    queue_wait_ms=st.none() | finite,
    end_to_end_ms=st.none() | finite,
    client_latency_ms=finite,
    status=st.text(),
    error=st.none() | st.text(),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def read_records(path: Path) -> Any:
    return json.loads(path.read_text())


def same(one: Any, other: Any) -> bool:
    """Equal, with NaN equal to itself."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@given(runs=st.lists(st.lists(records, max_size=4), min_size=1, max_size=3))
@settings(deadline=None, max_examples=30)
def test_what_is_appended_is_read_back_in_order(runs: list[list[Record]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "records.json")
        for run in runs:
            assert append_records(path, run) is None
        assert read_records(path) == [msgspec.to_builtins(record) for run in runs for record in run]


@given(stored=st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=4))
@settings(deadline=None, max_examples=30)
def test_records_of_another_format_stay_as_they_are(stored: list[dict[str, Any]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "records.json")
        path.write_text(json.dumps(stored, indent=4))
        assert append_records(path, [ONE]) is None
        kept = read_records(path)
        assert same(kept[:-1], stored)
        assert kept[-1] == msgspec.to_builtins(ONE)


@given(content=st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
@settings(deadline=None, max_examples=60)
def test_nothing_that_a_file_held_is_ever_lost(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "records.json")
        path.write_bytes(content)
        kept_aside = append_records(path, [ONE])
        stored = read_records(path)
        assert stored[-1] == msgspec.to_builtins(ONE)
        if kept_aside is not None:
            assert kept_aside.read_bytes() == content
            assert len(stored) == 1
        else:
            assert not content.strip() or same(json.loads(content), stored[:-1])


@pytest.mark.parametrize(
    "content", [b'[{"worker": 1}, {"wor', b"{}", b"[1]", b"null", b"\x00\xff", b"[" * 100_000]
)
def test_unreadable_file_is_kept_aside_under_a_name_that_says_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "records.json"
    path.write_bytes(content)
    kept_aside = append_records(path, [ONE])
    assert kept_aside is not None
    assert kept_aside.name.startswith("records.unreadable-")
    assert kept_aside.suffix == ".json"
    assert kept_aside.read_bytes() == content
    assert len(read_records(path)) == 1


def test_special_numbers_survive(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    path.write_text('[{"large": 123456789012345678901234567890, "not_a_number": NaN}]')
    append_records(path, [ONE])
    assert read_records(path)[0]["large"] == 123456789012345678901234567890
    assert math.isnan(read_records(path)[0]["not_a_number"])


def test_runs_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    writers = [subprocess.Popen([sys.executable, "-c", APPENDS, str(path), name, "25"]) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert {record["job_id"] for record in read_records(path)} == {
        f"{n}.{i}" for n in "ab" for i in range(25)
    }


def test_reader_never_sees_a_part_and_a_kill_loses_nothing_written(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    path.write_text("[]")
    with subprocess.Popen([sys.executable, "-c", APPENDS, str(path), "c", "1000000"]) as writer:
        seen = 0
        while seen < 30:
            assert writer.poll() is None
            found = len(read_records(path))
            assert found >= seen
            seen = found
        writer.kill()
    assert len(read_records(path)) >= seen
    assert append_records(path, [ONE]) is None  # the lock died with its holder


def test_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "records.json"
    link.symlink_to(tmp_path / "real" / "records.json")
    append_records(link, [ONE])
    assert link.is_symlink()
    assert len(read_records(tmp_path / "real" / "records.json")) == 1


@pytest.mark.parametrize("name", [".", "file/records.json"])
def test_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordsError, match="choose another --output"):
        append_records(tmp_path / name, [ONE])


def test_folder_that_does_not_exist_is_made(tmp_path: Path) -> None:
    append_records(tmp_path / "new" / "records.json", [ONE])
    assert len(read_records(tmp_path / "new" / "records.json")) == 1
