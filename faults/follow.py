"""Accounts for the jobs of a long run while it runs, so that memory stays bounded."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import redis

from app.ledger import wire
from app.redis import keys
from faults.job_load import Account, Recipe, account, count
from faults.trial import SETTLE_S, Trial

ONE_OVER_HTTP_IN = 20


class Follower:
    """Takes jobs out of `trial.sent.accepted` as they end, and counts them in `trial.counted`.

    Reading every job over HTTP costs as much as posting it. So outcomes are read from the ledger, many at once, and
    one in twenty over HTTP besides.

    Attributes:
        over_http: The account of the jobs read over HTTP.
    """

    def __init__(self, trial: Trial) -> None:
        self.over_http = Account()
        self._trial = trial
        self._n_ended = 0

    async def look(self) -> None:
        """Count the jobs that ended since the last call; nothing while Redis is unavailable."""
        open_jobs: dict[str, list[str]] = defaultdict(list)
        for job_id in self._trial.sent.accepted:
            open_jobs[job_id.partition(".")[0]].append(job_id)
        found = await asyncio.to_thread(outcomes, self._trial.pool.client, list(open_jobs))
        counted, sample = Account(), dict[str, Recipe]()
        for batch, outcome in found.items():
            for job_id in open_jobs[batch]:
                recipe = self._trial.sent.accepted.pop(job_id)
                count(counted, job_id, recipe, as_told(outcome.jobs[int(job_id.partition(".")[2])]))
                self._n_ended += 1
                if self._n_ended % ONE_OVER_HTTP_IN == 0:
                    sample[job_id] = recipe
        self._trial.counted.add(counted)
        self.over_http.add(await account(self._trial.pool.urls, sample, SETTLE_S))


def outcomes(client: Any, batches: Sequence[str]) -> dict[str, wire.BatchOutcome]:
    """Those of the batches that have an outcome."""
    pipe = client.pipeline(transaction=False)
    for batch in batches:
        pipe.hget(keys.batch(batch), "out")
    try:
        answers = pipe.execute()
    except redis.RedisError:
        return {}
    return {batch: wire.decode_outcome(out) for batch, out in zip(batches, answers, strict=True) if out}


def as_told(own: wire.JobOutcome) -> dict[str, object]:
    """The fields of a job that `Recipe.is_met_by` reads, as the API gives them."""
    predictions = [{"class": each} for each in own.classes]
    return {"status": own.status, "predictions": predictions, "error": {"code": own.error_code}}
