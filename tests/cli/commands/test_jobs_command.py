"""`modelyard jobs` and `modelyard doctor` as commands: tables, JSON and exit statuses."""

from __future__ import annotations

import json

import pytest
import redis
import redis.asyncio
from click.testing import CliRunner, Result

from app.ledger import ids
from app.ledger.worker_ledger import WorkerLedger
from app.redis import keys
from app.server_errors import JobNotQuarantinedError, UnavailableError
from cli.redis_address import REMEDIES
from modelyard.commands.main import cli
from tests.pool_samples import RedisServer, accept_now, head, new_batch, outcome

QUEUE = head().queue
RETENTION_S = 100.0


@pytest.fixture
def quarantined(redis_server: RedisServer) -> str:
    """Id of a quarantined job."""
    batch = new_batch(2)

    accept_now(redis_server.url, batch)
    with redis.Redis.from_url(redis_server.url) as client:
        client.delete(QUEUE)
        client.set(keys.SECRET, b"s" * 32)
        worker = WorkerLedger(client, "host-1", QUEUE, RETENTION_S)
        claimed = worker.claim(batch.batch_id)
        assert claimed
        worker.finish(claimed, outcome(2), {1: claimed.data[8:]})
    return ids.job_id(batch.batch_id, 1)


def run(server: RedisServer, *arguments: str) -> Result:
    environment = {"REDIS_URL": server.url, "COLUMNS": "200"}
    return CliRunner().invoke(cli, arguments, env=environment)


def test_quarantined_jobs_are_listed(redis_server: RedisServer, quarantined: str) -> None:
    assert quarantined in run(redis_server, "jobs", "quarantined").stdout
    (job,) = json.loads(run(redis_server, "jobs", "quarantined", "--json").stdout)
    assert (job["job_id"], job["n_samples"], job["resent_as"]) == (quarantined, 1, None)


def test_resending_twice_sends_once_and_says_so(redis_server: RedisServer, quarantined: str) -> None:
    first = json.loads(run(redis_server, "jobs", "resend", "--json", quarantined).stdout)
    second = json.loads(run(redis_server, "jobs", "resend", "--json", quarantined).stdout)
    assert (first["id"], first["sent_before"]) == (second["id"], False)
    assert second["sent_before"]
    assert "was resent before" in run(redis_server, "jobs", "resend", quarantined).stdout
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.llen(QUEUE) == 1
    assert "was resent as" in run(redis_server, "jobs", "resend", "--again", quarantined).stdout
    assert "healthy" in run(redis_server, "doctor", "--patience", "0").stdout


def test_what_cannot_be_resent_is_refused(redis_server: RedisServer, quarantined: str) -> None:
    refused = run(redis_server, "jobs", "resend", quarantined.replace(".1", ".0"))
    assert isinstance(refused.exception, JobNotQuarantinedError)
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    assert isinstance(run(redis_server, "jobs", "resend", quarantined).exception, UnavailableError)
    assert "no job is in quarantine" in run(redis_server, "jobs", "quarantined").stdout


def test_the_doctor_shows_what_it_found_and_what_it_mended(
    redis_server: RedisServer, quarantined: str
) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.persist(keys.batch(quarantined.split(".")[0]))
        client.set("modelyard:surprise[red]", 1)
    found = run(redis_server, "doctor", "--patience", "0")
    assert found.exit_code == 1
    assert "no_ttl" in found.stdout
    assert "modelyard:surprise[red]" in found.stdout
    mended = json.loads(run(redis_server, "doctor", "--patience", "0", "--mend", "--json").stdout)
    assert [(each["kind"], each["mended"]) for each in mended["findings"]] == [
        ("no_ttl", True),
        ("unknown_key", False),
    ]
    with redis.Redis.from_url(redis_server.url) as client:
        client.delete("modelyard:surprise[red]")
    assert run(redis_server, "doctor").exit_code == 0


@pytest.mark.parametrize(
    ("login", "text"),
    [("guest:guest-word@", "NOPERM"), ("guest:wrong-word@", "WRONGPASS")],
)
def test_a_login_that_redis_refuses_is_told_with_its_remedy(
    redis_server: RedisServer, login: str, text: str
) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.acl_setuser("guest", enabled=True, passwords=["+guest-word"], categories=["+@connection"])
        url = redis_server.url.replace("unix://", f"unix://{login}")
        refused = CliRunner().invoke(cli, ["doctor", "--patience", "0"], env={"REDIS_URL": url})
        client.acl_deluser("guest")
    assert refused.exit_code == 2
    assert text in refused.stderr
    assert "start it" not in refused.stderr
    assert any(remedy in refused.stderr for remedy in REMEDIES.values())
