"""What a version in MLflow tells of itself, and that it can be served by whoever loads it."""

import json
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from app.quality import Quality, read_quality
from app.server_errors import RegistryUnavailableError
from modelyard.digits import load_digits_28
from training.datasets import digest_of
from training.inventory import (
    RegisteredVersion,
    best_version,
    connect,
    registered_versions,
)
from training.options import TrainOptions
from training.registry import requirements
from training.registry_reader import Question, Reading, RegistryReader
from training.versions import train_versions

from .conftest import IdxFiles, Ignore, Trained


def test_a_run_records_what_was_fitted_to_what_and_how_it_went(trained: Trained) -> None:
    client = MlflowClient(trained.tracking_uri)
    digest = digest_of(*load_digits_28())
    for arch, version in zip(("mlp", "cnn"), trained.versions, strict=True):
        run = client.get_run(version.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.params["arch"] == run.data.tags["arch"] == arch
        assert run.data.params["train_samples"] == "1438"
        assert run.data.params["seed"] == "0"
        assert run.data.metrics["val_accuracy"] == version.val_accuracy
        for metric in ("train_loss", "val_loss", "val_accuracy"):
            steps = [point.step for point in client.get_metric_history(version.run_id, metric)]
            # The last one for the model itself.
            assert steps == ([1, 2, 2] if metric == "val_accuracy" else [1, 2])
        (data,) = run.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest) == ("digits", digest)
        quality = read_quality(client, client.get_model_version("Digits", str(version.version)))
        assert quality == Quality(version.val_accuracy, "model", "digits", digest, 359)


def test_a_run_keeps_its_figures_and_its_split(trained: Trained) -> None:
    run_id = trained.versions[0].run_id
    paths = {item.path for item in MlflowClient(trained.tracking_uri).list_artifacts(run_id)}
    assert {"learning_curve.png", "confusion_matrix.png", "split.json"} <= paths
    split = json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/split.json"))
    assert len(split["val_indices"]) == 359


@pytest.mark.parametrize("version", [1, 2])
def test_a_version_is_a_graph_with_a_free_batch_dimension(trained: Trained, version: int) -> None:
    info = mlflow.models.get_model_info(f"models:/Digits/{version}")
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/Digits/{version}"))
    assert [(t.type, t.shape) for t in info.signature.inputs] == [(np.dtype("float32"), (-1, 1, 28, 28))]
    assert [(t.type, t.shape) for t in info.signature.outputs] == [(np.dtype("float32"), (-1, 10))]
    assert (folder / "data" / "model.pt2").is_file()
    assert not list(folder.rglob("*.pth"))
    assert (folder / "requirements.txt").read_text().split() == requirements()


def test_requirements_are_pins_that_any_index_can_resolve() -> None:
    assert [pin.split("==")[0] for pin in requirements()] == ["mlflow", "numpy", "torch"]
    assert not any("+" in pin for pin in requirements())


@pytest.mark.parametrize("version", [1, 2])
def test_a_version_loads_without_pickle_and_takes_any_batch(
    trained: Trained, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = mlflow.pytorch.load_model(f"models:/Digits/{version}")
    images = torch.from_numpy(load_digits_28()[0])
    with torch.inference_mode():
        whole = model(images[:1024])
        for n in (1, 2, 17, 1023):
            torch.testing.assert_close(model(images[:n]), whole[:n], rtol=1e-4, atol=1e-5)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole.sum(dim=1), torch.ones(1024))


def test_a_loaded_version_reaches_its_recorded_accuracy(trained: Trained) -> None:
    version = trained.versions[1]
    split = json.loads(mlflow.artifacts.load_text(f"runs:/{version.run_id}/split.json"))
    images, labels = load_digits_28()
    scores = mlflow.pyfunc.load_model("models:/Digits/2").predict(images[split["val_indices"]])
    assert (scores.argmax(axis=1) == labels[split["val_indices"]]).mean() == version.val_accuracy


def test_versions_are_listed_as_they_were_registered(trained: Trained) -> None:
    found = registered_versions(trained.tracking_uri, "Digits")
    assert found == trained.versions
    assert [version.arch for version in found] == ["mlp", "cnn"]
    assert registered_versions(trained.tracking_uri, "Other") == []


def test_models_are_read_in_a_process_of_their_own_that_answers_again(trained: Trained) -> None:
    with RegistryReader(trained.tracking_uri) as reader:
        first = reader.read(Question(("Digits", "Other"), ("Digits",)))
        connect(trained.tracking_uri).set_registered_model_alias("Digits", "shadow", "1")
        try:
            second = reader.read(Question(None))
        finally:
            connect(trained.tracking_uri).delete_registered_model_alias("Digits", "shadow")
    digits = first.models.pop("Digits")
    assert not first.models
    assert sorted(digits.versions) == [1, 2]
    assert digits.qualities == {each.version: each.val_accuracy for each in trained.versions}
    assert second.models["Digits"].aliases == digits.aliases | {"shadow": 1}
    assert not second.models["Digits"].qualities


def test_more_versions_than_a_page_holds_are_all_listed(
    tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.inventory.IDS_PER_PAGE", 2)
    client = connect(tracking_uri)
    client.create_registered_model("Many")
    for version in range(1, 6):
        run = client.create_run("0")
        client.log_param(run.info.run_id, "arch", f"arch-{version}")
        model = client.create_logged_model("0", source_run_id=run.info.run_id)
        client.log_metric(run.info.run_id, "val_accuracy", version / 10, model_id=model.model_id)
        client.create_model_version("Many", f"models:/{model.model_id}", run.info.run_id)
    found = registered_versions(tracking_uri, "Many")
    assert [(each.version, each.arch, each.val_accuracy) for each in found] == [
        (version, f"arch-{version}", version / 10) for version in range(1, 6)
    ]


def ask(tracking_uri: str) -> Reading:
    with RegistryReader(tracking_uri) as reader:
        return reader.read(Question(("Digits",)))


def test_a_server_that_cannot_tell_the_numbers_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryUnavailableError, match="check MLFLOW_TRACKING_URI"):
        ask("http://127.0.0.1:1")


def test_listing_versions_makes_no_database(tmp_path: Path) -> None:
    assert registered_versions(f"sqlite:///{tmp_path}/none.db", "Digits") == []
    assert ask(f"sqlite:///{tmp_path}/none.db") == Reading()
    assert not list(tmp_path.iterdir())


def test_a_database_that_is_none_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "restored at the end")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.db").write_bytes(b"this is no database, and has never been one" * 100)
    with pytest.raises(RegistryUnavailableError, match=r"bad\.db cannot be read"):
        registered_versions("sqlite:///bad.db", "Digits")


def test_a_server_that_does_not_answer_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, ignore: Ignore
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "restored at the end")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryUnavailableError, match="check MLFLOW_TRACKING_URI"):
        train_versions(TrainOptions("http://127.0.0.1:1", "Digits"), ignore)


def described(version: int, val_accuracy: float | None, digest: str = "a") -> RegisteredVersion:
    return RegisteredVersion(version, "run", "mlp", digest, val_accuracy, champion=False)


@pytest.mark.parametrize(
    ("versions", "best"),
    [
        ([described(1, 0.9), described(2, 0.95), described(3, 0.92)], 2),
        ([described(1, 0.9), described(2, 0.9)], 1),
        ([described(1, 0.9), described(2, 0.99, digest="b")], 1),
        ([described(1, None), described(2, 0.1)], 2),
        ([described(1, None)], None),
        ([], None),
    ],
    ids=["highest", "tie", "other data set", "one without", "none with", "no version"],
)
def test_the_best_version_is_the_oldest_of_the_most_accurate_on_the_data_set(
    versions: list[RegisteredVersion], best: int | None
) -> None:
    found = best_version(versions, "a")
    assert (found.version if found else None) == best


def test_the_champion_moves_to_a_better_version_and_stays_on_a_tie(tracking_uri: str, ignore: Ignore) -> None:
    weak = TrainOptions(tracking_uri, "Digits", epochs=1)
    strong = replace(weak, epochs=3)
    champions = []
    for options in (weak, strong, strong, weak):
        versions = train_versions(options, ignore)
        champions.append([version.version for version in versions if version.champion])
    assert champions == [[1], [2], [2], [2]]
    assert versions[1].val_accuracy == versions[2].val_accuracy


def test_training_on_another_data_set_compares_only_its_own_versions(
    tracking_uri: str, idx_files: IdxFiles, tmp_path: Path, ignore: Ignore
) -> None:
    train_versions(TrainOptions(tracking_uri, "Digits", epochs=1), ignore)
    idx_files.write(tmp_path / "idx")
    noise = TrainOptions(tracking_uri, "Digits", dataset="mnist", data_dir=tmp_path / "idx", epochs=1)
    assert [(v.version, v.champion) for v in train_versions(noise, ignore)] == [(2, True)]


def test_a_training_that_breaks_off_leaves_a_failed_run_and_no_version(tracking_uri: str) -> None:
    def stop(what: str, done: int, *_: object) -> None:
        if what == "training mlp" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_versions(TrainOptions(tracking_uri, "Digits"), stop)
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("Digits")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status in ("FAILED", "KILLED")
    assert registered_versions(tracking_uri, "Digits") == []
