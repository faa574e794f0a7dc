"""Moves the waiting jobs of a version to the queue of the next version of its endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec

from app.contract import Contract, TensorContract
from app.ledger import commands, wire
from app.ledger.ids import is_well_formed
from app.ledger.wakeup_message import WakeUpMessages
from app.ledger.wire import BatchHead
from app.quality import VAL_ACCURACY
from app.redis import keys
from app.redis.client import AsyncClient, ledger_errors
from app.redis.script import run
from app.server_errors import NoCandidateError, WireError
from controller.endpoints import Endpoint
from controller.pool_watcher import PoolView
from controller.ranking import Candidate

CHUNK = 500  # batches that are read together
RETRY_AFTER_S = 2


class Reroute:
    """Moves batches, each by one script. A batch that a worker has claimed stays.

    Args:
        client: Asynchronous Redis client that returns bytes.
        template: Message template of `app.ledger.wakeup_message.write_template`.
    """

    def __init__(self, client: AsyncClient, template: bytes) -> None:
        self._client = client
        self._template = template

    async def move(self, queue: str, rivals: Sequence[Candidate]) -> int:
        """Move the waiting batches of a queue; returns the number of their jobs.

        Args:
            rivals: Result of `rivals_of`: each batch goes to the first whose contract it fits.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        moved = start = 0
        while True:
            with ledger_errors():
                found = cast(
                    list[bytes], await self._client.zrange(keys.pending(queue), start, start + CHUNK - 1)
                )
                batch_ids = [raw.decode("ascii", "replace") for raw in found]
                pipe = self._client.pipeline(transaction=False)
                for batch_id in batch_ids:
                    pipe.hget(keys.batch(batch_id), "head")
                heads = await pipe.execute() if batch_ids else []
                for batch_id, head in zip(batch_ids, heads, strict=True):
                    n_jobs = await self._move_one(batch_id, queue, head, rivals)
                    moved += n_jobs or 0
                    start += n_jobs is None  # it stays where it is, so that the next chunk begins after it
            if len(found) < CHUNK:
                return moved

    async def _move_one(
        self, batch_id: str, queue: str, raw: bytes | None, rivals: Sequence[Candidate]
    ) -> int | None:
        """The number of moved jobs; None if the batch stays."""
        if raw is None or not is_well_formed(batch_id):
            return None
        try:
            head = wire.decode_head(raw)
        except WireError:
            return None  # the reconciler closes it
        to = next((each for each in rivals if _fits(head, each.contract)), None)
        if to is None or head.queue != queue:
            return None
        message = WakeUpMessages(self._template, to.queue).write(batch_id)
        call = commands.reroute(batch_id, queue, raw, _rerouted(head, to), message)
        return int(await run(self._client, call)) or None


def rivals_of(view: PoolView, name: str, version: int) -> list[Candidate]:
    """The other versions of the endpoint of a version, best first, that take the same input.

    Raises:
        NoCandidateError: No other version takes the input.
    """
    queue = keys.queue_name(name, version)
    contract = next((each.input for each in view.records if each.queue == queue), None)
    own = [
        each
        for each in view.snapshot.endpoints.values()
        if queue in each.excluded or any(candidate.queue == queue for candidate in each.candidates)
    ]
    endpoint = own[0] if own else view.snapshot.by_model.get(name, Endpoint(name=name))
    others = [
        each
        for each in endpoint.candidates
        # Without a worker its contract is unknown; the jobs tell that of a plain tensor.
        if each.queue != queue
        and not each.is_cold
        and (each.contract == contract if contract else isinstance(each.contract, TensorContract))
    ]
    if others:
        return others
    raise NoCandidateError(
        f"no other version in service of the endpoint of {name}/{version} takes the same input; nothing was changed: "
        "start one, or retire the version without rerouting",
        retry_after_s=RETRY_AFTER_S,
    )


def _fits(head: BatchHead, contract: Contract) -> bool:
    """Whether a batch has the form of a rival's contract, which equals that of its version where that is known."""
    if isinstance(contract, TensorContract):
        same = (head.dtype, tuple(head.sample_shape)) == (contract.dtype, tuple(contract.sample_shape))
        return head.kind == "tensor" and same
    return head.kind != "tensor"


def _rerouted(head: BatchHead, to: Candidate) -> BatchHead:
    is_accuracy = to.metric == VAL_ACCURACY
    return msgspec.structs.replace(
        head,
        queue=to.queue,
        cold=to.is_cold,
        worker=to.worker,
        model_name=to.model_name,
        model_version=to.model_version,
        val_accuracy=to.val_accuracy,
        metric="" if is_accuracy else to.metric,
        direction="" if is_accuracy else to.direction,
        metric_value=None if is_accuracy else to.figure,
        rerouted_from=head.rerouted_from or f"{head.model_name}/{head.model_version}",
    )
