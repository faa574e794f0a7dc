from __future__ import annotations

import shutil
from pathlib import Path

from cli.local_pool.registry_watch import RegistryWatch
from tests.conftest import WaitUntil
from training.inventory import connect
from training.registry_reader import Question, RegistryReader

READ_S = 60.0


def test_last_reading_stays_while_the_registry_is_away_and_changes_are_read_at_its_return(
    empty_database: Path, tmp_path: Path, wait_until: WaitUntil
) -> None:
    database, elsewhere = tmp_path / "mlflow.db", tmp_path / "elsewhere.db"
    shutil.copy(empty_database, database)
    client = connect(f"sqlite:///{database}")
    client.create_registered_model("digits")
    client.create_model_version("digits", source=f"file://{tmp_path}")
    question = Question(("digits",))
    reader = RegistryReader(f"sqlite:///{database}")
    first = reader.read(question)
    watch = RegistryWatch(f"sqlite:///{database}", question, first, reader)
    watch.start()
    try:
        database.rename(elsewhere)
        wait_until(lambda: watch.look.problem, timeout_s=READ_S, what="the registry is away")
        assert watch.look.reading == first
        shutil.copy(elsewhere, tmp_path / "moved.db")
        connect(f"sqlite:///{tmp_path}/moved.db").set_registered_model_alias("digits", "champion", "1")
        (tmp_path / "moved.db").rename(database)
        wait_until(lambda: not watch.look.problem, timeout_s=READ_S, what="the registry is back")
        assert watch.look.reading
        assert watch.look.reading.models["digits"].aliases == {"champion": 1}
        watch.ask(Question(("other",)))
        wait_until(lambda: watch.look.question == Question(("other",)), timeout_s=READ_S)
        assert watch.look.reading.models == {}
        assert watch.look.reading.names == ("digits",)
    finally:
        watch.close()
