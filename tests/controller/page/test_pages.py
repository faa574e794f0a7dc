"""The files of the page."""

from __future__ import annotations

from controller.page.pages import FILES, FOLDER

MOST_BYTES = 150_000


def test_the_files_that_a_browser_loads_are_small() -> None:
    loaded = [FOLDER / "index.html", *(FOLDER / name for name in FILES if not name.endswith(".txt"))]
    assert sum(path.stat().st_size for path in loaded) <= MOST_BYTES
