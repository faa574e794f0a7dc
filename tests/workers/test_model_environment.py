"""`MODELYARD_ENV_MANAGER=uv`: a version answers with its own packages, and one that cannot be built is one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from importlib.metadata import version
from pathlib import Path

import mlflow
import msgspec
import numpy as np
import pytest
import redis
from click.testing import CliRunner
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from app.ledger import wire
from app.pool_file import NamedVersion
from app.redis import keys
from app.server_errors import ModelEnvironmentError
from app.settings import WorkerSettings
from cli.commands.check_command import command
from cli.local_pool.desired_state import Target
from cli.local_pool.planning import prepare_environments
from tests.conftest import WaitUntil
from tests.pool_samples import RedisServer
from tests.workers.worker_processes import Start, accept, ready_pids, records
from workers import in_environment
from workers.handover import Handover, Refusal
from workers.model_environment import build, reason_of
from workers.model_lookup import look_up

LIBRARY, OLD = "iniconfig", "0.0.8"  # a small package that the tests have in another version


def wheel(folder: Path) -> None:
    """An old release of the library, which knows nothing but its version."""
    info = f"{LIBRARY}-{OLD}.dist-info"
    with zipfile.ZipFile(folder / f"{LIBRARY}-{OLD}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{LIBRARY}/__init__.py", f"number = {OLD[-1]}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {LIBRARY}\nVersion: {OLD}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def old_registry(registry: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables for a worker of the model `Old`: version 1 needs the old library, 2 what Modelyard cannot go with."""
    folder = tmp_path_factory.mktemp("old")
    wheel(folder)
    mlflow.set_tracking_uri(registry)
    source = folder / "old_model.py"
    source.write_text(MODEL)
    signature = ModelSignature(inputs=Schema([TensorSpec(np.dtype("float64"), (-1, 2))]))
    for requirement in (f"{LIBRARY}=={OLD}", "redis==5.0.0"):
        with warnings.catch_warnings(), mlflow.start_run():
            warnings.simplefilter("ignore")
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(source),
                signature=signature,
                registered_model_name="Old",
                pip_requirements=[f"mlflow=={version('mlflow')}", requirement],
            )
    return {
        "MLFLOW_TRACKING_URI": registry,
        "MODEL_NAME": "Old",
        "MODELYARD_ENV_MANAGER": "uv",
        "MODELYARD_ENVIRONMENTS_DIR": str(folder / "environments"),
        "PIP_FIND_LINKS": f"{os.environ.get('PIP_FIND_LINKS', '')} {folder}",
    }


PICKLED = {"MODELYARD_ALLOW_PICKLE_MODELS": "true"}  # it is Python code
MODEL = """
import mlflow
import msgspec
import numpy as np

class Old(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        import iniconfig
        return np.full(len(model_input), getattr(iniconfig, "number", -1))

mlflow.models.set_model(Old())
"""


def prepare(variables: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "cli", "worker", "--model-version", "1", "--prepare"]
    return subprocess.Popen(command, env=os.environ | PICKLED | variables, stderr=subprocess.PIPE, text=True)


@pytest.mark.timeout(300)
def test_a_version_is_served_with_the_packages_that_it_was_logged_with(
    start_worker: Start,
    redis_server: RedisServer,
    old_registry: dict[str, str],
    wait_until: WaitUntil,
    measured: dict[str, str],
) -> None:
    both = prepare(old_registry | measured), prepare(old_registry)
    said = [each.communicate(timeout=120)[1] for each in both]
    assert sum("uv: Installed" in each for each in said) == 1, said
    assert sum("models:/Old/1 has its environment in" in each for each in said) == 2
    worker = start_worker("1", **old_registry)
    with redis.Redis.from_url(redis_server.url) as client:
        wait_until(lambda: ready_pids(client) or worker.poll() is not None, timeout_s=150)
        [record] = records(client)
        assert (record.model_version, record.main_pid, record.requirements) == (1, worker.pid, ())
        batch_id = accept(redis_server.url, "Old")
        wait_until(lambda: client.hget(keys.batch(batch_id), "out"), what="the batch is run")
        stored = client.hget(keys.batch(batch_id), "out")
        assert isinstance(stored, bytes)
        assert [job.classes for job in wire.decode_outcome(stored).jobs] == [[8], [8]]
    worker.terminate()
    _, last = worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert "uv:" not in last
    done = CliRunner().invoke(command, ["models:/Old/1"], env=old_registry | PICKLED)
    assert done.exit_code == 0, done.output
    assert f"{LIBRARY}=={OLD} ({version(LIBRARY)} installed)" in done.output


def test_an_environment_that_cannot_be_built_is_one_line_and_leaves_nothing(
    start_worker: Start, old_registry: dict[str, str], tmp_path: Path, measured: dict[str, str]
) -> None:
    worker = start_worker("2", **old_registry, **measured, TMPDIR=str(tmp_path))
    _, said = worker.communicate(timeout=120)
    assert worker.returncode == 1
    last = said.splitlines()[-1]
    for part in (
        "the environment of models:/Old/2 cannot be built",
        "redis==5.0.0",
        "MODELYARD_ENV_MANAGER=local",
    ):
        assert part in last
    assert "Traceback" not in said
    environments = Path(old_registry["MODELYARD_ENVIRONMENTS_DIR"])
    assert all((each / "built.json").exists() for each in environments.iterdir() if each.is_dir())
    assert not list(tmp_path.glob("modelyard-*"))


def test_a_worker_that_is_started_again_does_not_repeat_a_build_that_has_just_failed(
    start_worker: Start, old_registry: dict[str, str]
) -> None:
    def said() -> list[str]:
        return start_worker("2", **old_registry).communicate(timeout=120)[1].splitlines()

    said()
    [note] = Path(old_registry["MODELYARD_ENVIRONMENTS_DIR"]).glob("*.failed")
    again = said()
    assert "uv:" not in "".join(again)
    assert "modelyard worker --prepare" in again[-2]
    assert again[-1] == f"modelyard worker: {note.read_text()}"
    os.utime(note, (0, 0))
    later = said()
    assert "uv:" in "".join(later)
    assert later[-1] == again[-1]


def test_a_long_reason_of_uv_is_cut_between_its_beginning_and_its_conclusion() -> None:
    chain = [f"│ and package-{n}>=1 depends on another=={n}," for n in range(40)]
    said = [
        "Using CPython",
        "\N{MULTIPLICATION SIGN} No solution found:",
        "╰─▶ Because you require redis==5.0.0",
        *chain,
        "we can conclude that you require kombu>=5.7 and packaging<25.",
    ]
    reason = reason_of(said)
    assert reason.startswith(
        "No solution found: Because you require redis==5.0.0 and package-0>=1 depends on"
    )
    assert reason.endswith("require kombu>=5.7 and packaging<25 (the log above has all of it)")
    assert len(reason) < 350


def test_wheels_of_one_name_and_different_content_are_of_different_environments(
    registry: str, tmp_path: Path
) -> None:
    settings = WorkerSettings(environments_dir=tmp_path / "environments", mlflow_tracking_uri=registry)
    found = look_up(registry, "Scikit", "1")
    for content in ("one", "other"):
        folder = Path(shutil.copytree(found.path, tmp_path / content))
        (folder / "own-1.0-py3-none-any.whl").write_text(content)
        (folder / "requirements.txt").write_text("./own-1.0-py3-none-any.whl\n")
        with pytest.raises(ModelEnvironmentError, match=r"own-1\.0"):  # it is no archive
            build(msgspec.structs.replace(found, path=str(folder)), settings)
    assert len(list((tmp_path / "environments").glob("*.failed"))) == 2


def test_a_missing_python_is_named_as_what_to_install(registry: str, tmp_path: Path) -> None:
    settings = WorkerSettings(environments_dir=tmp_path / "environments", mlflow_tracking_uri=registry)
    found = look_up(registry, "Scikit", "1")
    folder = Path(shutil.copytree(found.path, tmp_path / "model"))
    (folder / "python_env.yaml").write_text("python: 3.99.1\n")
    with pytest.raises(ModelEnvironmentError, match=r"; install Python 3\.99 on this machine, or set"):
        build(msgspec.structs.replace(found, path=str(folder)), settings)


def test_a_pool_builds_the_other_environments_where_one_cannot_be_built(
    old_registry: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in (old_registry | PICKLED).items():
        monkeypatch.setenv(name, value)
    prepare_environments([Target(NamedVersion("Old", 2)), Target(NamedVersion("Old", 1))])
    said = capfd.readouterr().err
    assert "the environment of models:/Old/2 cannot be built" in said
    assert "models:/Old/1 has its environment in" in said


@pytest.mark.parametrize(
    ("allowed", "code"), [("true", ""), ("false", "model_not_allowed")], ids=["loads", "is refused"]
)
def test_a_trial_in_the_environment_answers_whether_the_version_loads(
    allowed: str, code: str, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = WorkerSettings(allow_pickle_models=allowed == "true", mlflow_tracking_uri=registry)
    handed = Handover(settings.model_dump(mode="json"), look_up(registry, "Scikit", "1"), "", is_trial=True)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with tempfile.TemporaryFile() as file:
        file.write(msgspec.msgpack.encode(handed))
        file.seek(0)
        monkeypatch.setattr(sys, "argv", ["in_environment", str(os.dup(file.fileno()))])
        in_environment.main()
        file.seek(0)
        assert msgspec.msgpack.decode(file.read(), type=Refusal).code == code
