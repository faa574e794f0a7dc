"""All Redis keys and channels: name, type, lifetime and writer. No other file spells them.

| key | type | lives | written by |
| --- | --- | --- | --- |
| `modelyard:batch:<batch>` | hash, see `app.ledger` | last deadline + retention; finished: retention | ledger scripts |
| `modelyard:pending:<queue>` | sorted set: batch by accepted-at ms | while it waits or runs | ledger scripts |
| `modelyard:deadlines:<queue>` | sorted set: batch by last deadline ms | while it waits or runs | ledger scripts |
| `modelyard:running:<queue>` | hash: batch to worker id | while a worker holds it | ledger scripts |
| `modelyard:open:<queue>` | hash: batch to jobs without outcome | while it waits or runs | ledger scripts |
| `modelyard:backlog` | hash: queue to the sum of the same | one field a queue | ledger scripts |
| `modelyard:quarantine` | sorted set: job id by when it was quarantined, ms | retention, 10,000 jobs | ledger scripts |
| `modelyard:recent:<kind>` | sorted set: a finished job by when it finished, ms | retention, 10,000 jobs | controller |
| `modelyard:queue:<model>:<version>` | list of Celery messages | Celery's | ledger scripts; Celery (pop) |
| `modelyard:numbers` | hash: queue to worker number | one field a queue | worker |
| `modelyard:workers` | sorted set: worker id by last heartbeat ms | swept by controllers | worker |
| `modelyard:worker:<id>` | string: JSON record, see `app.worker_record` | three heartbeats | worker |
| `modelyard:once:<key>` | string, see `admission.idempotency` | seconds; with a job: retention | controller |
| `modelyard:rate:{<limit of client>}` | strings: requests in this window and the last | two windows | controller |
| `modelyard:decision:<id>` | string: JSON, see `controller.decisions` | the jobs that it routed | controller |
| `modelyard:last_records` | hash: queue to the last record of its workers | one field a queue | controller |
| `modelyard:start_failures` | hash: queue to JSON, see `app.start_failures` | ten seconds | `modelyard up`, worker |
| `modelyard:secret` | string: 32 random bytes that sign batch ids | for ever | controller |
| `modelyard:epoch` | string: 16 random bytes that tell these data from those after a loss | for ever | controller |
| `modelyard:marks` | hash, see `app.ledger.marks`: tells of data that Redis lost | for ever | controller, worker |
| `modelyard:loss` | string: JSON of the last loss, see `app.ledger.marks` | retention | controller |
| `modelyard:controls` | hash, see `app.version_controls`: versions out of service | for ever | controller |
| `modelyard:decisions` | sorted set: a decision by when it was taken, ms | 1,000 entries | controller |
| `modelyard:routing_changes` | sorted set: the same, of routing changes | 1,000 entries | controller |
| `modelyard:history` | string: JSON, see `controller.page.history` | a day | controller |
| `modelyard:webhooks` | sorted set: job id by its webhook's next look, ms | until delivered or given up | controller |
| `modelyard:lease:reconciler` | string: controller id | a few seconds | controller |

| channel | message | published by |
| --- | --- | --- |
| `modelyard:pool` | a worker id: its record changed | worker |
| `modelyard:registry` | the name of a registered model: MLflow has reported a change of it | controller |
| `modelyard:reply:<controller>` | batch id and its outcome | ledger scripts |

Celery's own keys on the same server: `modelyard:unacked*`, `_kombu.binding.*` and its event channels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

PREFIX = "modelyard"
_kept = lru_cache(maxsize=4096)  # the names of a queue's keys are needed for each batch
BACKLOG = f"{PREFIX}:backlog"
NUMBERS = f"{PREFIX}:numbers"
WORKERS = f"{PREFIX}:workers"
LAST_RECORDS = f"{PREFIX}:last_records"
START_FAILURES = f"{PREFIX}:start_failures"
SECRET = f"{PREFIX}:secret"
EPOCH = f"{PREFIX}:epoch"
MARKS = f"{PREFIX}:marks"
LOSS = f"{PREFIX}:loss"
HISTORY = f"{PREFIX}:history"
CONTROLS = f"{PREFIX}:controls"
DECISIONS = f"{PREFIX}:decisions"
ROUTING_CHANGES = f"{PREFIX}:routing_changes"
RATE = f"{PREFIX}:rate"
QUARANTINE = f"{PREFIX}:quarantine"
WEBHOOKS = f"{PREFIX}:webhooks"
RECONCILER_LEASE = f"{PREFIX}:lease:reconciler"
POOL_CHANNEL = f"{PREFIX}:pool"
REGISTRY_CHANNEL = f"{PREFIX}:registry"
UNACKED = f"{PREFIX}:unacked"


@dataclass(frozen=True, slots=True)
class KeyKind:
    """The rules for every key whose name begins with `prefix`.

    Attributes:
        type: Type as returned by Redis's TYPE; empty for Celery's keys, which may have any type.
        expires: Whether it must have a time to live; the other kinds never expire, by design.
        names_queue: Whether the rest of the name is a queue's name.
    """

    prefix: str
    type: str
    expires: bool
    names_queue: bool = False


KINDS = (
    KeyKind(f"{PREFIX}:batch:", "hash", expires=True),
    KeyKind(f"{PREFIX}:pending:", "zset", expires=False, names_queue=True),
    KeyKind(f"{PREFIX}:deadlines:", "zset", expires=False, names_queue=True),
    KeyKind(f"{PREFIX}:running:", "hash", expires=False, names_queue=True),
    KeyKind(f"{PREFIX}:open:", "hash", expires=False, names_queue=True),
    KeyKind(f"{PREFIX}:worker:", "string", expires=True),
    KeyKind(f"{PREFIX}:once:", "string", expires=True),
    KeyKind(f"{PREFIX}:recent:", "zset", expires=True),
    KeyKind(f"{PREFIX}:queue:", "list", expires=False),
    KeyKind(f"{PREFIX}:decision:", "string", expires=True),
    KeyKind(f"{RATE}:", "string", expires=True),
    KeyKind(UNACKED, "", expires=False),
    KeyKind(BACKLOG, "hash", expires=False),
    KeyKind(NUMBERS, "hash", expires=False),
    KeyKind(WORKERS, "zset", expires=False),
    KeyKind(LAST_RECORDS, "hash", expires=False),
    KeyKind(START_FAILURES, "hash", expires=True),
    KeyKind(SECRET, "string", expires=False),
    KeyKind(EPOCH, "string", expires=False),
    KeyKind(MARKS, "hash", expires=False),
    KeyKind(LOSS, "string", expires=True),
    KeyKind(HISTORY, "string", expires=True),
    KeyKind(CONTROLS, "hash", expires=False),
    KeyKind(DECISIONS, "zset", expires=False),
    KeyKind(ROUTING_CHANGES, "zset", expires=False),
    KeyKind(QUARANTINE, "zset", expires=True),
    KeyKind(WEBHOOKS, "zset", expires=False),
    KeyKind(RECONCILER_LEASE, "string", expires=True),
)


def kind_of(name: str) -> KeyKind | None:
    """The kind of a key; None if it is not one of Modelyard's keys."""
    return next((kind for kind in KINDS if name.startswith(kind.prefix)), None)


def queue_name(model_name: str, model_version: int) -> str:
    """Celery queue of a model version, which is also the Redis list that holds its messages."""
    return f"{PREFIX}:queue:{model_name}:{model_version}"


def batch(batch_id: str) -> str:
    """Record of a batch."""
    return f"{PREFIX}:batch:{batch_id}"


@_kept
def pending(queue: str) -> str:
    """Batches of a queue without an outcome, by acceptance time."""
    return f"{PREFIX}:pending:{queue}"


@_kept
def deadlines(queue: str) -> str:
    """The same batches, by their last deadline."""
    return f"{PREFIX}:deadlines:{queue}"


@_kept
def running(queue: str) -> str:
    """The worker of each claimed batch of a queue."""
    return f"{PREFIX}:running:{queue}"


@_kept
def open_jobs(queue: str) -> str:
    """Number of jobs without an outcome in each batch of a queue."""
    return f"{PREFIX}:open:{queue}"


def recent(kind: str) -> str:
    """Recently finished jobs, see `controller.operate.job_history`."""
    return f"{PREFIX}:recent:{kind}"


def worker(worker_id: str) -> str:
    """Record of a worker."""
    return f"{PREFIX}:worker:{worker_id}"


def decision(decision_id: str) -> str:
    """The explanation of a routing decision."""
    return f"{PREFIX}:decision:{decision_id}"


def once(idempotency_key: str) -> str:
    """The job of an idempotency key."""
    return f"{PREFIX}:once:{idempotency_key}"


@_kept
def reply_channel(controller_id: str) -> str:
    """Channel on which a controller receives the outcomes of its batches."""
    return f"{PREFIX}:reply:{controller_id}"


def is_queue(queue: str) -> bool:
    """Whether the name has the form of `queue_name`."""
    return re.fullmatch(rf"{PREFIX}:queue:[^:]+:\d{{1,9}}", queue, re.ASCII) is not None


def model_of(queue: str) -> tuple[str, int]:
    """Model name and version of a queue: the inverse of `queue_name`."""
    _, _, name, version = queue.split(":")
    return name, int(version)
