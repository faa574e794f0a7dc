from __future__ import annotations

from pathlib import Path

from app.file_stamp import EditWatch


def test_edit_counts_once_when_two_looks_have_seen_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("one")
    edits = EditWatch(path)
    assert not edits.is_edited(path)
    path.write_text("one, tw")
    assert not edits.is_edited(path)
    path.write_text("one, two, three")  # the editor goes on
    assert [edits.is_edited(path) for _ in range(3)] == [False, True, False]
    path.unlink()
    assert [edits.is_edited(path) for _ in range(3)] == [False, True, False]


def test_two_looks_too_close_to_each_other_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    edits = EditWatch(path, apart_s=3600)
    path.write_text("one")
    assert [edits.is_edited(path) for _ in range(3)] == [False, False, False]
