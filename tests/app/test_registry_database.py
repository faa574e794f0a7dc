"""The database of a registry: what is of another MLflow, or of another program, is named and left as it is."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from app.registry_database import examine, others_beside, written_at_ns
from app.server_errors import RegistrySchemaError, RegistryUnavailableError
from app.settings import Settings
from modelyard.commands.exit_status import UNAVAILABLE
from tests.pool_samples import RedisServer

OF_MLFLOW_2 = "0584bdc529eb"  # the schema of MLflow 2.22
MAKE = """
import sys
import sqlalchemy
from alembic import command
from alembic.config import Config
import mlflow
from pathlib import Path
from mlflow.store.tracking.dbmodels.initial_models import Base

uri, revision = sys.argv[1:]
engine = sqlalchemy.create_engine(uri)
Base.metadata.create_all(engine)
config = Config()
config.set_main_option("script_location", str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
config.set_main_option("sqlalchemy.url", uri)
with engine.begin() as connection:
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
"""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a database of MLflow 2, as MLflow's own migrations lay it out."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlruns.db"
    arguments = [sys.executable, "-c", MAKE, uri, OF_MLFLOW_2]
    subprocess.run(arguments, check=True, capture_output=True, timeout=150)
    return uri


@pytest.fixture
def current(empty_database: Path) -> str:
    """URI of a database of the installed MLflow, not to be changed."""
    return f"sqlite:///{empty_database}"


def test_the_schema_of_the_installed_mlflow_is_current(current: str) -> None:
    assert examine(current) == "current"


@pytest.mark.parametrize(
    "command",
    [
        ["workers"],
        ["cli", "train", "--arch", "mlp"],
        ["cli", "up", "--no-views"],
    ],
    ids=lambda command: command[:2][-1],
)
def test_an_older_database_is_refused_in_one_line_and_keeps_its_bytes(
    old: str, redis_server: RedisServer, command: list[str], tmp_path: Path
) -> None:
    path = Path(old.removeprefix("sqlite:///"))
    before = path.read_bytes()
    variables = {
        "REDIS_URL": redis_server.url,
        "MLFLOW_TRACKING_URI": old,
        "MODELYARD_STATE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == (1 if command == ["workers"] else UNAVAILABLE)
    assert f"mlflow db upgrade {old}" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_database_of_a_newer_mlflow_or_of_another_program_is_refused(current: str, tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    path.write_bytes(Path(current.removeprefix("sqlite:///")).read_bytes())
    change(path, "UPDATE alembic_version SET version_num = 'fffffffffff0'")
    with pytest.raises(RegistrySchemaError, match="a newer MLflow than the installed one"):
        examine(f"sqlite:///{path}")
    folder = tmp_path / "a b#%20"
    folder.mkdir()
    foreign = folder / "foreign.db"
    change(foreign, "CREATE TABLE invoices (id INTEGER)")
    with pytest.raises(RegistrySchemaError, match="another program"):
        examine(f"sqlite:///{foreign}")


def test_what_is_missing_empty_or_unreadable_is_told_apart_and_not_created(tmp_path: Path) -> None:
    assert examine(f"sqlite:///{tmp_path}/none.db") == "missing"
    assert not os.listdir(tmp_path)
    (tmp_path / "empty.db").touch()
    assert examine(f"sqlite:///{tmp_path}/empty.db") == "empty"
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(RegistryUnavailableError, match="cannot be read"):
        examine(f"sqlite:///{tmp_path}/text.db")
    assert examine(f"file://{tmp_path}/none") == examine(f"{tmp_path}/none") == "missing"
    assert {examine(each) for each in ("http://127.0.0.1:1", str(tmp_path), "databricks")} == {
        "not a database"
    }


def test_a_database_server_is_looked_at_through_its_driver_before_mlflow_opens_it(old: str) -> None:
    """SQLite's own URI form goes the way of PostgreSQL and MySQL: through SQLAlchemy."""
    with pytest.raises(RegistrySchemaError, match=OF_MLFLOW_2):
        examine(old.replace("sqlite:///", "sqlite:///file:") + "?mode=ro&uri=true")
    with pytest.raises(RegistryUnavailableError, match="cannot be read"):
        examine("postgresql://127.0.0.1:1/mlflow")


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute(statement)
        database.commit()


def test_the_registry_that_lies_in_the_folder_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def default() -> str:
        return Settings().mlflow_tracking_uri

    assert default() == "sqlite:///mlruns.db"
    (tmp_path / "mlruns" / "1").mkdir(parents=True)  # as artifacts lie there
    assert default() == "sqlite:///mlruns.db"
    (tmp_path / "mlruns" / "1" / "meta.yaml").touch()
    assert default() == "mlruns"
    (tmp_path / "mlflow.db").touch()
    assert default() == "sqlite:///mlflow.db"
    (tmp_path / "mlruns.db").touch()
    assert default() == "sqlite:///mlruns.db"
    assert others_beside(default()) == (
        " (found instead: sqlite:///mlflow.db, mlruns; set MLFLOW_TRACKING_URI to use it)"
    )
    assert others_beside(f"sqlite:///{tmp_path}/mlruns.db").startswith(
        f" (found instead: sqlite:///{tmp_path}/mlflow.db"
    )
    assert others_beside("http://h:5000") == ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://h:5000")
    assert default() == "http://h:5000"


def test_a_file_that_comes_and_goes_is_looked_at_without_an_error(tmp_path: Path) -> None:
    log, elsewhere, is_over = tmp_path / "mlflow.db-wal", tmp_path / "elsewhere", threading.Event()
    log.write_bytes(b"1")

    def move() -> None:
        while not is_over.is_set():
            log.rename(elsewhere)
            elsewhere.rename(log)

    moving = threading.Thread(target=move)
    moving.start()
    try:
        seen = {written_at_ns(tmp_path / "mlflow.db") for _ in range(20_000)}
    finally:
        is_over.set()
        moving.join()
    assert seen == {(0, 0), (0, log.stat().st_mtime_ns)}
