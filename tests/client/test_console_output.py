"""Tables on terminals: a table where it fits, and else a paragraph for each row."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from modelyard.commands.console_output import Listing, drawn

LISTING = Listing(
    columns=("rank", "model", "version", "note", "aliases"),
    rows=[
        ("1*", "MNIST_PyTorch_Model", 2, None, "champion"),
        ("2", "MNIST_PyTorch_Model", 1, None, ""),
    ],
    title="two versions",
    marked=[0],
)


def lines(listing: Listing, width: int) -> list[str]:
    """What a terminal of that width shows."""
    console = Console(file=io.StringIO(), width=width)
    console.print(drawn(listing, width))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_table_that_fits_has_one_line_for_each_row_and_no_column_that_tells_nothing() -> None:
    assert lines(LISTING, 80) == [
        "two versions",
        "rank  model                version  aliases",
        "1*    MNIST_PyTorch_Model  2        champion",
        "2     MNIST_PyTorch_Model  1",
    ]


@pytest.mark.parametrize("width", [30, 40])
def test_a_terminal_that_is_too_narrow_shows_a_paragraph_for_each_row_with_whole_words(width: int) -> None:
    shown = lines(LISTING, width)
    assert max(map(len, shown)) <= width
    assert " ".join(" ".join(shown).split()) == (
        "two versions rank 1* model MNIST_PyTorch_Model version 2 aliases champion "
        "rank 2 model MNIST_PyTorch_Model version 1"
    )
    assert all("MNIST_PyTorch_Model" in line for line in shown if "model" in line)


def test_a_long_text_is_folded_in_its_column_before_the_table_is_given_up() -> None:
    note = "its jobs keep failing, and no other version of the model is ready"
    shown = lines(Listing(("model", "note"), [("Prices", note)]), 40)
    assert shown[0].split() == ["model", "note"]
    assert max(map(len, shown)) <= 40
