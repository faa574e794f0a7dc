"""Model versions from a real registry: resolved, loaded, checked and warmed up, or refused with what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from app.contract import TensorContract, TensorsContract
from app.contract.documents import Document
from app.server_errors import (
    InputTypeError,
    ModelContractError,
    ModelNotFoundError,
    ModelWarmUpError,
    ModelyardError,
    RegistryUnavailableError,
)
from app.settings import WorkerSettings
from tests.workers.model_versions import pt2, settings
from workers import model
from workers.model_lookup import ModelVersion, look_up, read_description, read_version
from workers.warm_up import LoadedModel


def load(wanted: WorkerSettings) -> LoadedModel:
    return model.load(find(wanted), wanted)


def find(wanted: WorkerSettings) -> ModelVersion:
    return look_up(wanted.mlflow_tracking_uri, wanted.model_name, wanted.model_version)


@pytest.mark.parametrize(("wanted", "version"), [("1", 1), ("3", 3), ("champion", 1), ("latest", 4)])
def test_a_number_an_alias_and_latest_resolve_to_a_version(registry: str, wanted: str, version: int) -> None:
    found = find(settings(registry, wanted))
    assert (found.name, found.version, found.quality.value) == ("Scikit", version, 0.75)
    assert found.run_id


@pytest.mark.parametrize(
    ("wanted", "fields"),
    [
        ("99", {}),
        ("nobody", {}),
        ("1", {"model_name": "Nobody"}),
        ("latest", {"model_name": "No"}),
        ("latest", {"model_name": "Emptied"}),
    ],
)
def test_a_version_that_does_not_exist_is_not_found_and_says_what_to_do(
    registry: str, wanted: str, fields: dict[str, str]
) -> None:
    with pytest.raises(ModelNotFoundError, match="MODEL_NAME and MODEL_VERSION"):
        find(settings(registry, wanted, **fields))


def test_a_database_that_does_not_exist_is_named_and_not_created(tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    says = pytest.raises(RegistryUnavailableError, match=r"none\.db names a database that does not exist")
    with says:
        read_version(settings(f"sqlite:///{path}", "1"), str(tmp_path))
    assert not path.exists()


def test_a_registry_that_does_not_answer_is_unavailable(
    free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryUnavailableError, match="check MLFLOW_TRACKING_URI"):
        find(settings(f"http://127.0.0.1:{free_port()}", "1"))


def test_a_scikit_learn_model_with_a_tensor_signature_answers_its_labels(registry: str) -> None:
    loaded = load(settings(registry, "1"))
    assert loaded.contract == TensorContract("float64", (2,))
    assert loaded.device == "cpu"
    assert loaded.predict(np.array([[0.0, 0.5], [1.0, 0.5]])).tolist() == [3, 8]


def test_a_model_that_names_its_one_output_answers_that(registry: str) -> None:
    loaded = load(settings(registry, "1", model_name="Named"))
    assert loaded.contract == TensorContract("float64", (2,))
    assert loaded.predict(np.array([[0.0, 0.5], [1.0, 0.5]]))["sum"].tolist() == [0.5, 1.5]


@pytest.mark.parametrize(
    ("version", "error", "text"),
    [
        ("2", ModelContractError, "tensor of complex64"),
        ("4", ModelWarmUpError, "fails on zeros"),
    ],
)
def test_a_model_that_cannot_be_served_says_why(
    registry: str, version: str, error: type[ModelyardError], text: str
) -> None:
    with pytest.raises(error, match=text):
        load(settings(registry, version))


def test_a_pt2_model_refuses_more_samples_than_it_was_exported_for_each_time(tmp_path: Path) -> None:
    import torch

    few = torch.export.Dim("n_samples", max=8)
    program = torch.export.export(torch.nn.Linear(4, 3), (torch.zeros(2, 4),), dynamic_shapes=({0: few},))
    torch.export.save(program, tmp_path / "model.pt2")
    predict = model.load(pt2(tmp_path, (-1, 4)), settings("", "1", device="cpu")).predict
    for n_samples in (8, 3, 9, 9, 8):
        samples = np.ones((n_samples, 4), np.float32)
        if n_samples > 8:
            with pytest.raises(AssertionError, match="<= 8"):
                predict(samples)
        else:
            assert np.allclose(predict(samples), program.module()(torch.from_numpy(samples)).detach())


@pytest.mark.parametrize("form", ["places", "names", "dictionary", "list"])
def test_a_pt2_model_takes_its_tensors_in_the_form_that_it_was_exported_with(
    form: str, tmp_path: Path
) -> None:
    import torch

    class Scaled(torch.nn.Module):
        def forward(self, a: Any, b: Any = None) -> Any:
            first, second = (a["a"], a["b"]) if isinstance(a, dict) else a if isinstance(a, list) else (a, b)
            return {"difference": first - second, "pair": (first, [second])}

    a, b, n = torch.ones(2, 3), torch.zeros(2, 3), {0: torch.export.Dim("n", max=64)}
    forms: dict[str, tuple[Any, Any]] = {
        "places": ((a, b), (n, n)),
        "names": ((a,), {"a": n, "b": n}),
        "dictionary": (({"a": a, "b": b},), ({"a": n, "b": n},)),
        "list": (([a, b],), ([n, n],)),
    }
    arguments, dynamic = forms[form]
    named = {"b": b} if form == "names" else None
    exported = torch.export.export(Scaled(), arguments, named, dynamic_shapes=dynamic)
    torch.export.save(exported, tmp_path / "model.pt2")
    # The contract names them in another order, except for a list, which has no names.
    names = ("a", "b") if form == "list" else ("b", "a")
    loaded = model.load(pt2(tmp_path, (-1, 3), names), settings("", "1", device="cpu"))
    assert isinstance(loaded.contract, TensorsContract)
    assert loaded.contract.merges
    twos, ones = np.full((5, 3), 2, np.float32), np.ones((5, 3), np.float32)
    answer = loaded.predict({"a": twos, "b": ones} if form == "list" else {"b": ones, "a": twos})
    assert answer["difference"].tolist() == [[1.0] * 3] * 5
    first, [second] = answer["pair"]
    assert (first.tolist(), second.tolist()) == (twos.tolist(), ones.tolist())


def test_a_pt2_model_moves_to_another_device_with_what_its_graph_makes(tmp_path: Path) -> None:
    import torch

    class Doubled(torch.nn.Module):
        """Holds constants of its own, which a module's `to` does not move."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 3)
            self.two = torch.full((1,), 2.0)

        def forward(self, samples: torch.Tensor) -> torch.Tensor:
            doubled: torch.Tensor = self.linear(samples) * self.two + torch.arange(3)
            return doubled

    n_samples = torch.export.Dim("n_samples")
    program = torch.export.export(Doubled().eval(), (torch.zeros(2, 4),), dynamic_shapes=({0: n_samples},))
    torch.export.save(program, tmp_path / "model.pt2")
    found = pt2(tmp_path, (-1, 4))
    wanted = settings("", "1", device="cpu")
    assert model.load(found, wanted).predict(np.zeros((5, 4), np.float32)).shape == (5, 3)
    # The one device besides the CPU that every machine has: it computes shapes, and no numbers to take back.
    nowhere = wanted.model_copy(update={"device": "meta"})
    with pytest.raises(ModelWarmUpError, match="Cannot copy out of meta tensor"):
        model.load(found, nowhere)


@pytest.mark.filterwarnings("ignore")
def test_a_model_on_text_tensors_gets_arrays_of_the_dtype_that_its_signature_states(tmp_path: Path) -> None:
    text = Schema(
        [TensorSpec(np.dtype("str"), (-1, 2), "words"), TensorSpec(np.dtype(object), (-1,), "more")]
    )
    folder, code = tmp_path / "model", tmp_path / "code.py"
    code.write_text(
        "import mlflow, numpy\n"
        "def predict(model_input):\n"
        "    return numpy.char.upper(model_input['words'])[:, 0].astype(object) + model_input['more']\n"
        "mlflow.models.set_model(predict)\n"
    )
    mlflow.pyfunc.save_model(
        str(folder), python_model=str(code), signature=ModelSignature(inputs=text), pip_requirements=[]
    )
    described = read_description(str(folder))
    found = ModelVersion("Text", 1, "", str(folder), described.flavors, described.signature)
    loaded = model.load(found, WorkerSettings(allow_pickle_models=True))
    given = {"words": np.array([["a", "b"], ["ü", "c"]], object), "more": np.array(["x", "y"], object)}
    assert loaded.predict(given).tolist() == ["Ax", "Üy"]


HINTS = """
import datetime, mlflow, pydantic
from mlflow.exceptions import MlflowException

class Message(pydantic.BaseModel):
    text: str

class Row(pydantic.BaseModel):
    id: int
    messages: list[Message]

def predict(model_input: list[HINT]) -> list[str]:
    if model_input == ["fail"]:
        raise MlflowException.invalid_parameter_value("of the model's own")
    return [str(each) for each in model_input]

mlflow.models.set_model(predict)
"""


def load_with_hint(folder: Path, hint: str) -> LoadedModel:
    (folder / "code.py").write_text(HINTS.replace("HINT", hint))
    mlflow.pyfunc.save_model(str(folder / "model"), python_model=str(folder / "code.py"), pip_requirements=[])
    described = read_description(str(folder / "model"))
    found = ModelVersion("Hints", 1, "", str(folder / "model"), described.flavors, described.signature)
    return model.load(found, WorkerSettings(allow_pickle_models=True))


@pytest.mark.parametrize(
    ("hint", "given", "text"),
    [
        ("str", ["a", 1], r"invalid elements: \[\('1', 'Expected type str, but got int'\)\]"),
        ("str", "a", "Expected list, but got str"),
        ("datetime.datetime", ["noon"], "Invalid isoformat string: 'noon'"),
        ("Row", [{"id": "x", "messages": []}], "for Row id Input should be a valid integer"),
        ("Row", [{"id": 1, "messages": [{"text": "a"}, {}]}], r"for Row messages\.1\.text Field required"),
        ("Row", [{"id": "x" * 1000, "messages": []}], "for Row id Input should be a valid integer"),
        ("dict[str, Row]", [{"a": {"id": 1}}], "for Row messages Field required"),
    ],
)
def test_input_that_does_not_fit_a_model_s_type_hint_is_refused_with_what_is_wrong(
    tmp_path: Path, hint: str, given: Any, text: str
) -> None:
    loaded = load_with_hint(tmp_path, hint)
    with pytest.raises(InputTypeError, match=f"does not fit the model's type hint: .*{text}"):
        loaded.predict(Document("inputs", given))


def test_text_becomes_a_time_where_a_model_s_type_hint_says_so(tmp_path: Path) -> None:
    loaded = load_with_hint(tmp_path, "datetime.datetime")
    assert loaded.predict(Document("inputs", ["2026-11-29T12:30:00"])) == ["2026-11-29 12:30:00"]


def test_an_error_of_mlflow_that_a_model_with_type_hints_raises_itself_is_the_model_s(tmp_path: Path) -> None:
    loaded = load_with_hint(tmp_path, "str")
    assert loaded.predict(Document("inputs", ["a"])) == ["a"]
    with pytest.raises(MlflowException, match="of the model's own"):
        loaded.predict(Document("inputs", ["fail"]))
