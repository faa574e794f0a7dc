"""Names in Redis: told apart, led back, and all of them in the table at the top of the file."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from app.redis import keys

model_names = st.text(st.characters(exclude_characters=":/"), min_size=1, max_size=30)


@given(model_names, st.integers(1, 10**9))
def test_a_queue_leads_back_to_its_model_version(name: str, version: int) -> None:
    assert keys.model_of(keys.queue_name(name, version)) == (name, version)


def test_every_key_and_channel_stands_in_the_table() -> None:
    table = re.findall(r"^\| `([^`]+)`", keys.__doc__ or "", re.MULTILINE)
    made = [
        keys.batch("<batch>"),
        keys.pending("<queue>"),
        keys.deadlines("<queue>"),
        keys.running("<queue>"),
        keys.open_jobs("<queue>"),
        keys.QUARANTINE,
        keys.WEBHOOKS,
        keys.BACKLOG,
        keys.NUMBERS,
        keys.WORKERS,
        keys.LAST_RECORDS,
        keys.START_FAILURES,
        keys.worker("<id>"),
        keys.once("<key>"),
        f"{keys.RATE}:{{<limit of client>}}",
        keys.SECRET,
        keys.EPOCH,
        keys.MARKS,
        keys.LOSS,
        keys.HISTORY,
        keys.recent("<kind>"),
        keys.CONTROLS,
        keys.DECISIONS,
        keys.ROUTING_CHANGES,
        keys.decision("<id>"),
        keys.RECONCILER_LEASE,
        keys.POOL_CHANNEL,
        keys.REGISTRY_CHANNEL,
        keys.reply_channel("<controller>"),
        "modelyard:queue:<model>:<version>",
    ]
    assert sorted(table) == sorted(made)


def test_every_key_of_the_table_is_of_a_kind_that_the_doctor_knows() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` \| ([a-z ]+)", (keys.__doc__ or "").split("| channel |")[0], re.MULTILINE
    )
    types = {"hash": "hash", "sorted set": "zset", "string": "string", "list of": "list"}
    assert len(rows) == len(keys.KINDS) - 1  # the last kind is Celery's own
    for name, text in rows:
        kind = keys.kind_of(name)
        assert kind, name
        assert text.startswith(next(words for words, each in types.items() if each == kind.type)), name
