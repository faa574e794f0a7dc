"""Training and inference as a person calls them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from app.server_errors import ConfigurationError, InputError, ModelNotFoundError
from app.settings import Settings
from modelyard.commands.main import cli
from modelyard.digits import heldout_indices, load_digits_28
from modelyard.images import load_png_28
from training.command import unregistered, versions_document
from training.inventory import registered_versions
from training.local_inference import load, scores

from .conftest import Trained


def test_training_from_nothing_prints_a_table_and_none_of_mlflows_chatter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: dict[str, str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    line = [sys.executable, "-m", "training", "--epochs", "2", "--model-name", "Mine"]
    environment = os.environ | measured
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "champion" in done.stdout
    epochs = [line for line in done.stdout.splitlines() if line.startswith("training mlp ")]
    assert [line.split(":")[0] for line in epochs] == [
        "training mlp 1/2",
        "training mlp 2/2",
    ]  # this is no terminal
    assert "registering mlp" in done.stdout
    monkeypatch.chdir(tmp_path)
    (version,) = registered_versions("sqlite:///mlruns.db", "Mine")
    assert done.stdout.splitlines()[-1] == f"1\tmlp\t{version.val_accuracy:.4f}\tchampion\tnew"
    document = versions_document("Mine", [version], new=1)
    assert (
        document["versions"][0] | {"val_accuracy": version.val_accuracy, "new": True}
        == document["versions"][0]
    )
    assert {path.name for path in tmp_path.iterdir()} == {"mlruns.db", "mlruns"}


@pytest.mark.parametrize(
    "option", [["--arch", "vgg"], ["--epochs", "0"], ["--val-fraction", "1"], ["--learning-rate", "0"]]
)
def test_an_option_out_of_range_is_refused(option: list[str]) -> None:
    result = CliRunner().invoke(cli, ["train", *option])
    assert result.exit_code == 2
    assert option[0] in result.output


@pytest.fixture
def digit_png(tmp_path: Path) -> Path:
    """A held-out digit, dark on light and four times as large, as a person would draw it."""
    images, labels = load_digits_28()
    ink = images[heldout_indices(labels)[0], 0]
    path = tmp_path / "digit.png"
    Image.fromarray(np.kron(255 - (ink * 255), np.ones((4, 4))).astype(np.uint8)).save(path)
    return path


def test_inference_predicts_a_png_by_version_alias_or_run_id(trained: Trained, digit_png: Path) -> None:
    best = next(version for version in trained.versions if version.champion)
    assert best.run_id
    uris = [f"models:/Digits/{best.version}", "models:/Digits@champion", best.run_id]
    expected = scores(load(uris[0], trained.tracking_uri), load_png_28(digit_png))[0]
    for uri in uris:
        result = CliRunner().invoke(cli, ["inference", uri, str(digit_png)], catch_exceptions=False)
        assert result.exit_code == 0
        assert f"predicted {expected.argmax()}" in result.output
        assert f"{expected.max():.1%}" in result.output


def test_inference_tells_what_a_held_out_digit_truly_is(trained: Trained) -> None:
    _, labels = load_digits_28()
    truth = labels[heldout_indices(labels)[7]]
    result = CliRunner().invoke(
        cli, ["inference", "models:/Digits/1", "--digit", "7"], catch_exceptions=False
    )
    assert f"(it is {truth})" in result.output
    result = CliRunner().invoke(cli, ["inference", "models:/Digits/1", "--digit", "7", "--json"])
    told = json.loads(result.stdout)
    assert (told["model"], told["true_label"]) == ("models:/Digits/1", truth)
    assert told["predicted"] == np.argmax(told["scores"])


@pytest.mark.parametrize("uri", ["models:/Digits/99", "models:/Digits@nobody", "models:/Nothing/1", "0" * 32])
def test_a_version_that_does_not_exist_is_named(trained: Trained, uri: str) -> None:
    with pytest.raises(ModelNotFoundError, match=uri):
        load(uri, trained.tracking_uri)


def test_inference_without_a_registry_makes_none(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="run `modelyard train`"):
        load("models:/Digits/1", f"sqlite:///{tmp_path}/mlruns.db")
    assert not list(tmp_path.iterdir())


def test_inference_takes_an_image_or_a_digit_but_not_both(digit_png: Path) -> None:
    for arguments in ([], [str(digit_png), "--digit", "1"]):
        assert CliRunner().invoke(cli, ["inference", "models:/Digits/1", *arguments]).exit_code == 2


def test_a_file_that_is_no_image_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "digit.png").write_text("no image")
    result = CliRunner().invoke(cli, ["inference", "models:/Digits/1", str(tmp_path / "digit.png")])
    assert isinstance(result.exception, InputError)


def test_missing_trains_only_what_the_registry_has_no_version_of(trained: Trained) -> None:
    line = ["train", "--arch", "mlp", "--arch", "cnn", "--missing", "--model-name", "Digits"]
    result = CliRunner().invoke(cli, line)
    assert (result.exit_code, result.output) == (
        0,
        "Digits has a version of each architecture; nothing to train\n",
    )
    assert registered_versions(trained.tracking_uri, "Digits") == trained.versions
    assert unregistered(("mlp", "cnn"), Settings(model_name="Another")) == ("mlp", "cnn")


def test_registry_that_could_not_be_written_is_one_line_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/absent/mlruns.db"
    done = CliRunner().invoke(cli, ["train", "--epochs", "1"], env={"MLFLOW_TRACKING_URI": uri})
    assert isinstance(done.exception, ConfigurationError)
    assert f"{tmp_path}/absent does not exist; set MLFLOW_TRACKING_URI" in str(done.exception)
    assert done.output == ""
