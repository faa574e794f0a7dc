from __future__ import annotations

from pathlib import Path

import pytest

from app.pool_file import Serve
from app.server_errors import ConfigurationError
from app.settings import Settings
from cli.local_pool.served_entries import ServedEntries, entries_given

ENTRY = "[[serve]]\nmodel = '{}'\n"


def test_edit_is_read_when_two_looks_have_seen_it_and_a_wrong_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "modelyard.toml"
    path.write_text(ENTRY.format("first"))
    source = ServedEntries(Settings(pool_file=path))
    assert source.entries == (Serve(model="first"),)
    path.write_text(ENTRY.format("second-one"))
    assert [source.read() for _ in range(3)] == [False, True, False]
    assert source.entries == (Serve(model="second-one"),)
    for text, told in (("", "no [[serve]] entry any more"), ("[[serve]]", "`model` is missing")):
        path.write_text(text)
        assert not source.read()
        with pytest.raises(ConfigurationError) as caught:
            source.read()
        assert told in caught.value.detail
        assert not source.read()  # it is told once
        assert source.entries == (Serve(model="second-one"),)


def test_command_line_comes_before_the_file_and_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "modelyard.toml"
    path.write_text(ENTRY.format("filed"))
    settings = Settings(pool_file=path, model_name="set")
    given = entries_given(settings, ["digits:3", "models:/digits@champion", "flowers"], [])
    assert given == [Serve(model="digits", versions=(3, "champion")), Serve(model="flowers")]
    assert ServedEntries(settings, given).entries == tuple(given)
    assert ServedEntries(settings, entries_given(settings, [], [2, 1])).entries == (
        Serve(model="set", versions=(2, 1)),
    )
    assert ServedEntries(settings).entries == (Serve(model="filed"),)
    path.write_text("")
    assert ServedEntries(settings).entries == (Serve(model="set"),)


@pytest.mark.parametrize(
    ("models", "versions", "told"),
    [
        (["a:b:c"], [], "expected NAME"),
        (["a"], [1], "--model NAME:3"),
        (["@champion"], [], "expected NAME"),
        (["a:0"], [], "expected NAME"),
        (["a: "], [], "expected NAME"),
    ],
)
def test_wrong_arguments_are_refused(models: list[str], versions: list[int], told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        entries_given(Settings(), models, versions)
    assert told in caught.value.detail
