"""``modelyard inference``: one model version, one image, no server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelyard.commands.console_output import JSON_OPTION, examples, write_json
from modelyard.commands.given_samples import chosen_sample

if TYPE_CHECKING:
    from rich.console import RenderableType

_BAR_WIDTH = 30


@click.command(
    epilog=examples(
        "modelyard inference models:/MNIST_PyTorch_Model@champion seven.png",
        "modelyard inference models:/MNIST_PyTorch_Model/1 --digit 7 --json | jq .predicted",
    )
)
@click.argument("model_uri")
@click.argument("image", required=False, type=click.Path(path_type=Path))
@click.option("--digit", type=int, metavar="I", help="Index of a held-out digit, instead of an image.")
@JSON_OPTION
def command(model_uri: str, image: Path | None, digit: int | None, as_json: bool) -> None:
    """Predict what digit IMAGE shows, with the model version MODEL_URI.

    MODEL_URI is models:/name/version, models:/name@alias or a run id; the registry is
    MLFLOW_TRACKING_URI. IMAGE is a PNG of any size, light on dark or dark on light.
    """
    from rich.console import Console

    from app.settings import WorkerSettings
    from app.settings import load as load_settings

    if (image is None) == (digit is None):
        raise click.UsageError("give either an IMAGE or --digit")
    sample, source, true_label = chosen_sample(image, digit)
    settings = load_settings(WorkerSettings)
    console = Console(stderr=as_json)
    with console.status(f"loading {model_uri}"):
        from training.local_inference import load, scores

        model = load(model_uri, settings.mlflow_tracking_uri, settings.allow_pickle_models)
        row = scores(model, sample)[0]
    if as_json:
        facts = {"model": model_uri, "source": source, "true_label": true_label}
        write_json(facts | {"predicted": int(row.argmax()), "scores": row.tolist()})
        return
    console.print(_view(sample, row, f"{source}, by {model_uri}", true_label))


def _view(sample: Any, row: Any, source: str, true_label: int | None) -> RenderableType:
    """The digit, and a bar for each score."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from modelyard.picture import half_blocks

    predicted = int(row.argmax())
    right = true_label in (None, predicted)
    truth = "" if true_label is None else f"  (it is {true_label})"
    head = Text.assemble(
        ("predicted ", "dim"), (str(predicted), f"bold {'green' if right else 'red'}"), truth
    )
    bars = Table.grid(padding=(0, 1))
    for label, score in enumerate(row):
        style = "bold green" if label == predicted else "dim"
        bars.add_row(
            Text(str(label), style), Text("█" * round(float(score) * _BAR_WIDTH), style), f"{score:6.1%}"
        )
    view = Table.grid(padding=(1, 3))
    view.add_row(half_blocks(sample), Group(Text(source, "dim"), head, "", bars))
    return view
