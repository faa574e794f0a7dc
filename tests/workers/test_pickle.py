"""A model that would run code when it is loaded: refused by default, and its code does not run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from app.server_errors import ModelNotAllowedError, ModelyardError
from app.settings import WorkerSettings
from tests.pool_samples import RedisServer
from workers import model
from workers.model_lookup import look_up
from workers.warm_up import LoadedModel

MODEL = "Exported"


class Trap:
    """What an attacker would put into a pickle: unpickling it creates a folder."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.sprung),)


def pickled_module(folder: Path, trap: bytes) -> None:
    """A PyTorch model in the pickled form, which MLflow prefers to a pt2 file beside it."""
    (folder / "data" / "model.pth").write_bytes(trap)
    (folder / "data" / "pickle_module_info.txt").write_text("pickle")


def pickled_samples_within_pt2(folder: Path, trap: bytes) -> None:
    """A pt2 file one of whose records `torch.export.load` unpickles."""
    change_records(folder, {"model/data/sample_inputs/model.pt": trap})


def pickled_weight_within_pt2(folder: Path, trap: bytes) -> None:
    """The same by its list of weights, which says that one of them is a pickle."""
    entry = {"path_name": "weight_0", "is_param": True, "use_pickle": True, "tensor_meta": None}
    listed = json.dumps({"config": {"weight": entry}}).encode()
    records = {"model_weights_config.json": listed, "weight_0": trap}
    change_records(folder, {f"model/data/weights/{name}": content for name, content in records.items()})


def object_within_pt2(folder: Path, trap: bytes) -> None:
    """A pt2 file with a constant that is no tensor; PyTorch finds it whatever its case."""
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    listed = json.dumps({"config": {"anything": entry}}).encode()
    records = {"model_constants_config.json": listed, "OPAQUE_obj_0": trap}
    change_records(folder, {f"model/data/constants/{name}": content for name, content in records.items()})


def compiled_within_pt2(folder: Path, trap: bytes) -> None:
    """A pt2 file with machine code, which `torch.export.load` would load too."""
    change_records(folder, {"model/data/aotinductor/model/model.wrapper.so": trap})


def change_records(folder: Path, changed: dict[str, bytes]) -> None:
    path = folder / "data" / "model.pt2"
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (records | changed).items():
            archive.writestr(name, content)


def no_archive(folder: Path, trap: bytes) -> None:
    """A pickle that is called a pt2 file."""
    (folder / "data" / "model.pt2").write_bytes(trap)


def other_flavour(folder: Path, trap: bytes) -> None:
    """A scikit-learn model, which is always pickled."""
    (folder / "model.pkl").write_bytes(trap)
    flavours = {
        "sklearn": {"pickled_model": "model.pkl", "serialization_format": "pickle"},
        "python_function": {"loader_module": "mlflow.sklearn", "model_path": "model.pkl"},
    }
    change_flavours(folder, lambda _: flavours)


def code_beside_pt2(folder: Path, trap: bytes) -> None:
    """A pt2 file with a folder of Python code, which MLflow would put first on the path."""
    (folder / "code").mkdir()
    (folder / "code" / "model.py").write_bytes(trap)
    change_flavours(folder, lambda old: old | {"pytorch": old["pytorch"] | {"code": "code"}})


def change_flavours(folder: Path, change: Callable[[dict[str, dict[str, str]]], object]) -> None:
    description = yaml.safe_load((folder / "MLmodel").read_text())
    description["flavors"] = change(description["flavors"])
    (folder / "MLmodel").write_text(yaml.safe_dump(description))


@pytest.fixture(scope="module")
def exported(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Tracking URI of a registry with one good pt2 model, and the folder of its files."""
    import mlflow
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    folder = tmp_path_factory.mktemp("exported")
    shutil.copy(empty_database, folder / "mlruns.db")
    uri = f"sqlite:///{folder}/mlruns.db"
    signature = ModelSignature(inputs=Schema([TensorSpec(np.dtype("float32"), (-1, 2))]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.set_tracking_uri(uri)
        mlflow.create_experiment("pickle", artifact_location=(folder / "artifacts").as_uri())
        mlflow.set_experiment("pickle")
        with mlflow.start_run():
            mlflow.pytorch.log_model(
                torch.nn.Linear(2, 3).eval(),
                name="model",
                signature=signature,
                input_example=np.zeros((2, 2), np.float32),
                registered_model_name=MODEL,
                serialization_format="pt2",
                pip_requirements=["torch"],
            )
    (description,) = folder.rglob("MLmodel")
    return uri, description.parent


@pytest.fixture
def poisoned(
    exported: tuple[str, Path], tmp_path: Path
) -> Iterator[Callable[[Callable[[Path, bytes], None]], Path]]:
    """`poisoned(how)` changes the model's files, and answers which folder appears if the trap springs."""
    _, folder = exported
    good = tmp_path / "good"
    shutil.copytree(folder, good)

    def poison(how: Callable[[Path, bytes], None]) -> Path:
        sprung = tmp_path / "sprung"
        shutil.rmtree(folder)
        shutil.copytree(good, folder)
        how(folder, pickle.dumps(Trap(sprung)))
        return sprung

    yield poison
    shutil.rmtree(folder)
    shutil.copytree(good, folder)


def settings(uri: str, allow: bool = False) -> WorkerSettings:
    return WorkerSettings(
        model_name=MODEL, model_version="1", mlflow_tracking_uri=uri, allow_pickle_models=allow
    )


def load(uri: str, allow: bool = False) -> LoadedModel:
    return model.load(look_up(uri, MODEL, "1"), settings(uri, allow))


def test_a_pt2_model_loads_by_default(exported: tuple[str, Path]) -> None:
    assert load(exported[0]).predict(np.zeros((5, 2), np.float32)).shape == (5, 3)


UNPICKLED = (
    pickled_module,
    other_flavour,
    pickled_samples_within_pt2,
    pickled_weight_within_pt2,
    object_within_pt2,
)


@pytest.mark.parametrize("how", [*UNPICKLED, compiled_within_pt2, no_archive, code_beside_pt2])
def test_what_would_run_code_is_refused_by_default_and_its_code_does_not_run(
    exported: tuple[str, Path],
    poisoned: Callable[..., Path],
    how: Callable[[Path, bytes], None],
) -> None:
    sprung = poisoned(how)
    with pytest.raises(ModelNotAllowedError, match="MODELYARD_ALLOW_PICKLE_MODELS=true"):
        load(exported[0])
    assert not sprung.exists()


def test_the_traps_of_these_tests_are_live_ones(
    exported: tuple[str, Path],
    poisoned: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(model.TORCH_SWITCH, raising=False)  # set by the other tests' loading
    for how in UNPICKLED:
        caplog.clear()
        sprung = poisoned(how)
        with pytest.raises(ModelyardError):  # what the trap leaves is no model
            load(exported[0], allow=True)
        assert sprung.exists()
        sprung.rmdir()
        # Those show while it is loaded.
        if how not in (pickled_samples_within_pt2, pickled_weight_within_pt2):
            assert "MODELYARD_ALLOW_PICKLE_MODELS is set" in caplog.text


def test_a_worker_that_finds_a_pickle_ends_with_one_line_that_names_the_setting(
    exported: tuple[str, Path], poisoned: Callable[..., Path], redis_server: RedisServer
) -> None:
    sprung = poisoned(pickled_module)
    variables = {
        "REDIS_URL": redis_server.url,
        "MLFLOW_TRACKING_URI": exported[0],
        "MODEL_NAME": MODEL,
        "MODEL_VERSION": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "workers"],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 1
    assert "MODELYARD_ALLOW_PICKLE_MODELS=true" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not sprung.exists()
