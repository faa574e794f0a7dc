"""Writing again what Redis confirmed and then lost, as `controller.recovery.replay_buffer` does when Redis has come back without it.

What is still there is left as it is, so all of this may be done twice. All of it was accepted, so a full Redis takes
it as well: each script deletes first, see `app.ledger.ledger`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import redis.asyncio

from app.ledger import wire
from app.ledger.closing import CLOSE_COUNT, finish_keys
from app.ledger.ids import JobRef
from app.ledger.ledger import ACCEPT_AGAIN, Args, ledger_errors
from app.ledger.wire import BatchOutcome
from app.redis import keys

CancelAnswer = Literal["unknown", "finished", "cancelled"]

# Where things stand in what `app.ledger.ledger.accept_call` answers. In what `outcome_call` answers, the head stands in the
# same place, and the outcome in that of the samples.
BATCH_ID, QUEUE, HEAD, LAST_DEADLINE_MS = 0, 1, 2, 6
FIRST_ONCE_KEY, FIRST_ONCE_VALUE = 6, 10
TTL_MS = 4  # in `outcome_call`'s

# KEYS batch pending deadlines backlog running open once…; ARGV batch_id queue head out ttl_ms once_value…
# Whoever runs the batch again loses the claim: the outcome that was announced is the one. Nobody is told anew.
_RESTORE_OUTCOME = (
    """
redis.call('HDEL', KEYS[1], '')
if redis.call('HEXISTS', KEYS[1], 'out') == 1 then return 0 end
redis.call('HDEL', KEYS[5], ARGV[1])
redis.call('HDEL', KEYS[1], 'data', 'by', 'at')
redis.call('HSET', KEYS[1], 'head', ARGV[3], 'out', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
"""
    + CLOSE_COUNT
    + """
for i = 7, #KEYS do redis.call('SET', KEYS[i], ARGV[i - 1], 'PX', ARGV[5]) end
return 1
"""
)

# KEYS batch running backlog open; ARGV batch_id queue index. A worker that has claimed the batch meanwhile does not
# know of the cancel, so its claim is taken away; the reconciler sends the batch again.
_CANCEL_AGAIN = """
redis.call('HDEL', KEYS[1], '')
if redis.call('HEXISTS', KEYS[1], 'head') == 0 then return 'unknown' end
if redis.call('HEXISTS', KEYS[1], 'out') == 1 then return 'finished' end
if redis.call('HSETNX', KEYS[1], 'c:' .. ARGV[3], 1) == 1 then
  redis.call('HINCRBY', KEYS[4], ARGV[1], -1)
  redis.call('HINCRBY', KEYS[3], ARGV[2], -1)
  redis.call('HDEL', KEYS[2], ARGV[1])
  redis.call('HDEL', KEYS[1], 'by')
end
return 'cancelled'
"""


class Restore:
    """The scripts. Each may raise `LedgerUnavailableError`, and `WireError` where a key holds something else.

    Args:
        client: Asynchronous Redis client that answers bytes.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._accept_again = client.register_script(ACCEPT_AGAIN)
        self._restore_outcome = client.register_script(_RESTORE_OUTCOME)
        self._cancel_again = client.register_script(_CANCEL_AGAIN)

    async def batch(self, names: Sequence[str], args: Args) -> bool:
        """Accept a batch again, by its `app.ledger.ledger.accept_call`; True if Redis had lost it."""
        with ledger_errors():
            return bool(await self._accept_again(keys=names, args=args))

    async def outcome(self, names: Sequence[str], args: Args) -> bool:
        """Write an outcome that was announced, and its batch's record, by `outcome_call`; True if it was lost."""
        with ledger_errors():
            return bool(await self._restore_outcome(keys=names, args=args))

    async def cancel(self, ref: JobRef, queue: str) -> CancelAnswer:
        """Cancel a job, even one that a worker has claimed meanwhile."""
        names = [keys.batch(ref.batch_id), keys.running(queue), keys.BACKLOG, keys.open_jobs(queue)]
        with ledger_errors():
            answer = cast(bytes, await self._cancel_again(keys=names, args=[ref.batch_id, queue, ref.index]))
        return cast(CancelAnswer, answer.decode())


def outcome_call(
    names: Sequence[str], args: Args, outcome: BatchOutcome, ttl_ms: int
) -> tuple[list[str], Args]:
    """Keys and arguments that write an outcome, from those that accepted its batch."""
    batch_id, queue = str(args[BATCH_ID]), str(args[QUEUE])
    once_names = names[FIRST_ONCE_KEY:]
    once_values = args[FIRST_ONCE_VALUE : FIRST_ONCE_VALUE + len(once_names)]
    return (
        [*finish_keys(batch_id, queue), *once_names],
        [batch_id, queue, args[HEAD], wire.encode(outcome), ttl_ms, *once_values],
    )
