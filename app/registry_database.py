"""Location of an MLflow registry, and a check whether it may be opened, because MLflow migrates opened databases.

MLflow has no check that leaves an older database unchanged. So this module reads the schema revision and compares it
with the revisions of the installed MLflow, without importing MLflow. It reads only the names of the tables, with
SQLAlchemy's `inspect`, and the revision, with Alembic's `MigrationContext`.
"""

from __future__ import annotations

import os
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from app.server_errors import RegistrySchemaError, RegistryUnavailableError, first_line

LATEST = "latest"  # stands for the newest version; MLflow reserves the name, so that no alias has it
DATABASES = ("mssql", "mysql", "postgresql", "sqlite")  # those that MLflow knows
REVISION = re.compile(r'^(down_)?revision = "(\w+)"', re.MULTILINE)
MYSQL_TLS = {
    "ssl_ca": "MLFLOW_MYSQL_SSL_CA",
    "ssl_cert": "MLFLOW_MYSQL_SSL_CERT",
    "ssl_key": "MLFLOW_MYSQL_SSL_KEY",
}

# In the working directory: ours first, then MLflow 3's default; the folder is that of MLflow 2.
OWN, MLFLOWS, FOLDER = "sqlite:///mlruns.db", "sqlite:///mlflow.db", "mlruns"
Found = Literal["missing", "empty", "current", "not a database"]


def default_uri() -> str:
    """The registry in the working directory, or the database that will be created there."""
    return next(iter(_registries_in(Path())), OWN)


def others_beside(uri: str) -> str:
    """For error messages about a missing object: the other registries in the same folder, or empty."""
    path = sqlite_path(uri) or _folder(uri)
    own = path.resolve() if path else None
    found = [each for each in _registries_in(path.parent if path else Path()) if _place(each) != own]
    return (
        f" (found instead: {', '.join(found)}; set MLFLOW_TRACKING_URI to use it)" if found and path else ""
    )


def _registries_in(folder: Path) -> list[str]:
    databases = [f"sqlite:///{folder / each.removeprefix('sqlite:///')}" for each in (OWN, MLFLOWS)]
    found = [each for each in databases if _place(each).is_file()]
    # As MLflow does, it takes a folder for a registry only where that holds an experiment, not just artifacts.
    if any(each.parent.name.isdigit() for each in (folder / FOLDER).glob("*/meta.yaml")):
        found.append(str(folder / FOLDER))
    return found


def _place(uri: str) -> Path:
    return (sqlite_path(uri) or _folder(uri) or Path()).resolve()


def _folder(uri: str) -> Path | None:
    """The folder of a file store, which MLflow takes as a path or as a file URI; None for any other."""
    if uri.startswith("file:"):
        return Path(unquote(urlsplit(uri).path))
    return Path(uri) if uri and ":" not in uri and not uri.startswith("databricks") else None


def examine(uri: str) -> Found:
    """Check a registry's database without changing it.

    Args:
        uri: Value of MLFLOW_TRACKING_URI or MLFLOW_REGISTRY_URI.

    Returns:
        `missing`: a file or folder that does not exist; `empty`: a database without any table.

    Raises:
        RegistrySchemaError: MLflow would migrate it, or cannot read it.
        RegistryUnavailableError: It does not answer.
    """
    if uri.partition(":")[0].partition("+")[0] not in DATABASES:
        folder = _folder(uri)
        return "missing" if folder and not folder.exists() else "not a database"
    path = sqlite_path(uri)
    if path and not path.exists():
        return "missing"
    try:
        tables, revisions = _read(uri, path)
    except Exception as error:  # SQLAlchemy's, a driver's, or the lack of one
        raise RegistryUnavailableError(
            f"the MLflow database {uri} cannot be read: {first_line(error)}; check MLFLOW_TRACKING_URI"
        ) from error
    if not tables - {"alembic_version"}:
        return "empty"
    known, head = _known_revisions()
    if revisions != {head}:
        raise RegistrySchemaError(_refusal(uri, revisions, known))
    return "current"


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite URI; None for any other."""
    found = re.match(r"sqlite(\+\w+)?:///(?!file:)([^?]+)", uri)
    return Path(found[2]) if found else None


def written_at_ns(database: Path) -> tuple[int, int]:
    """When a SQLite database and its log were last written, in ns since the epoch; 0 for a file that is not there."""
    return _written_at_ns(database), _written_at_ns(Path(f"{database}-wal"))


def _written_at_ns(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _refusal(uri: str, revisions: set[str], known: frozenset[str]) -> str:
    if not revisions:
        return (
            f"{uri} has tables but no MLflow schema revision: it belongs to another program or is older than "
            "MLflow 1.0; set MLFLOW_TRACKING_URI to an MLflow database"
        )
    named = f"{uri} has the schema revision {', '.join(sorted(revisions))}"
    server = "run the MLflow server that owns it and set MLFLOW_TRACKING_URI to its http address"
    if revisions <= known:
        return (
            f"{named}, which is older than the installed MLflow's; opening it would migrate it, and its own MLflow "
            f"could no longer read it. Back it up and run `mlflow db upgrade {uri}`, or {server}"
        )
    return f"{named}, which a newer MLflow than the installed one created. Upgrade MLflow here, or {server}"


@cache
def _known_revisions() -> tuple[frozenset[str], str]:
    """The schema revisions that the installed MLflow can migrate from, and the one that it works with."""
    spec = find_spec("mlflow")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise RegistryUnavailableError(
            "MLflow is not installed; it is needed to read the registry's database"
        )
    # Read as text: importing them takes MLflow, and seconds.
    scripts = Path(next(iter(folders)), "store", "db_migrations", "versions").glob("*.py")
    found = [match for script in scripts for match in REVISION.finditer(script.read_text("utf-8"))]
    known = frozenset(match[2] for match in found if not match[1])
    [head] = known - {match[2] for match in found if match[1]}
    return known, head


def _read(uri: str, path: Path | None) -> tuple[set[str], set[str]]:
    """The names of the tables, and the schema revisions. A file of SQLite is neither created nor locked."""
    import sqlalchemy
    from alembic.migration import MigrationContext

    url = sqlalchemy.make_url(uri)
    if path:
        query = {"mode": "ro", "uri": "true"}
        url = sqlalchemy.URL.create("sqlite", database=f"file:{quote(str(path.resolve()))}", query=query)
    # As MLflow connects.
    given = (
        {name: os.environ.get(variable) for name, variable in MYSQL_TLS.items()}
        if uri.startswith("mysql")
        else {}
    )
    options = {name: value for name, value in given.items() if value}
    engine = sqlalchemy.create_engine(url, connect_args=options, poolclass=sqlalchemy.pool.NullPool)
    with engine.connect() as connection:
        tables = set(sqlalchemy.inspect(connection).get_table_names())
        return tables, set(MigrationContext.configure(connection).get_current_heads())
