"""The background task that delivers webhooks, at least once each.

The list in Redis says which job is looked at next (`app.ledger.webhook_list`), so any controller can deliver it. The
controller that hears an outcome makes its jobs due at once. Jobs of a controller that died are looked at after a few
seconds, and then at growing intervals until they have ended.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from app.clock import PoolClock
from app.ledger.controller_ledger import ControllerLedger, JobView
from app.ledger.ids import job_id as id_of
from app.ledger.webhook_list import WebhookList, read_state
from app.redis.client import AsyncClient
from app.server_errors import ConfigurationError, LedgerUnavailableError, ModelyardError
from app.settings import ControllerSettings
from controller.cancelling import cancel
from controller.events import Completed
from controller.http.job_json import job_json
from controller.metrics import WebhookOutcome
from controller.pool_watcher import PoolWatcher
from controller.results import is_open
from controller.webhooks.sender import DeliveryError, Sender
from modelyard.schemas import WebhookState
from modelyard.webhooks import signing_keys

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 64
MOST_PER_HOST = MOST_AT_ONCE // 2  # a receiver that does not answer leaves room for the others
RETRY_S = 1.0  # while Redis does not answer
BUSY_S = 0.5  # until the next look at a job whose receiver has its most
LONGEST_LOOK_S = 30.0
LONGEST_PAUSE_S = 300.0
DEADLINE_GRACE_MS = 1000  # as the reconciler's, for an open job at its deadline


class Webhooks:
    """Delivers jobs with a `callback_url`.

    Args:
        client: Asynchronous Redis client that returns bytes.
        count: Counts an attempt by its outcome: `delivered`, `retried` or `failed`.
    """

    def __init__(
        self,
        settings: ControllerSettings,
        client: AsyncClient,
        ledger: ControllerLedger,
        *,
        watcher: PoolWatcher,
        clock: PoolClock,
        count: Callable[[WebhookOutcome], None],
    ) -> None:
        self._settings = settings
        self._list = WebhookList(client)
        self._ledger = ledger
        self._watcher = watcher
        self._clock = clock
        self._count = count
        self._lease_ms = int(2000 * settings.webhook_timeout_s) + 1000
        self._news = asyncio.Event()
        self._ended: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: Counter[str] = Counter()

    def completed(self, event: Completed) -> None:
        """Make the jobs of a batch due."""
        if event.head.callbacks:
            self.ended(id_of(event.batch_id, index) for index in event.head.callbacks)

    def ended(self, job_ids: Iterable[str]) -> None:
        """Make jobs due that have ended."""
        self._ended.update(job_ids)
        self._news.set()

    async def run(self) -> None:
        """Deliver until cancelled. An unreachable Redis is retried."""
        sender = Sender(self._settings, keys_of(self._settings))
        try:
            while True:
                try:
                    async with asyncio.timeout(self._settings.heartbeat_s):
                        await self._news.wait()
                except TimeoutError:
                    pass
                self._news.clear()
                try:
                    await self._pass(sender)
                except LedgerUnavailableError:
                    await asyncio.sleep(RETRY_S)
                except Exception:
                    logger.exception("a pass over the webhooks failed; retrying")
                    await asyncio.sleep(RETRY_S)
        finally:
            for task in list(self._tasks):
                await cancel(task)
            await sender.close()

    async def _pass(self, sender: Sender) -> None:
        """Begin to deliver due webhooks, as many as there is room for."""
        ended, self._ended = self._ended, set()
        if ended:
            try:
                await self._list.make_due(ended)
            except LedgerUnavailableError:
                self._ended |= ended
                raise
        while (room := MOST_AT_ONCE - len(self._tasks)) > 0:
            now_ms = self._clock.now_ms()
            lease_end_ms = int(now_ms) + self._lease_ms
            job_ids = await self._list.lease(now_ms, lease_end_ms, room)
            if job_ids:
                has_postponed = await self._begin(sender, job_ids, lease_end_ms)
            if len(job_ids) < room or has_postponed:
                return

    async def _begin(self, sender: Sender, job_ids: list[str], lease_end_ms: int) -> bool:
        """Begin to deliver leased jobs; True if a receiver has its most at the moment."""
        refs = {job_id: self._watcher.signer.parse_job_id(job_id) for job_id in job_ids}
        views = await self._ledger.read_all(ref for ref in refs.values() if ref)
        now_ms, over, looks_ms, is_busy = self._clock.now_ms(), [], {}, False
        for job_id, ref in refs.items():
            view = views.get(ref) if ref else None
            url = view.head.callbacks.get(view.ref.index) if isinstance(view, JobView) else None
            if isinstance(view, ModelyardError):  # perhaps a newer controller can read it, while it is kept
                looks_ms[job_id] = now_ms + LONGEST_LOOK_S * 1000
            elif view is None or not url or read_state(url, view.webhook).status != "pending":
                over.append(job_id)
            elif is_open(view):
                looks_ms[job_id] = self._next_look_ms(view, now_ms)
            elif self._busy[host := urlsplit(url).netloc] >= MOST_PER_HOST:
                looks_ms[job_id], is_busy = now_ms + BUSY_S * 1000, True
            else:
                self._busy[host] += 1
                task = asyncio.create_task(self._deliver(sender, url, view))
                self._tasks.add(task)
                task.add_done_callback(self._freed(host))
        if over:
            await self._list.drop(over)
        if looks_ms:
            await self._list.postpone(lease_end_ms, looks_ms)
        return is_busy

    def _next_look_ms(self, view: JobView, now_ms: float) -> float:
        """When to look at an open job again: at its deadline, or after as long as it has been open."""
        entry = view.head.jobs[view.ref.index]
        look_ms = now_ms + min(max(now_ms - entry.received_at_ms, 1000), LONGEST_LOOK_S * 1000)
        deadline_ms = entry.deadline_ms + DEADLINE_GRACE_MS
        return min(look_ms, deadline_ms) if deadline_ms > now_ms else look_ms

    def _freed(self, host: str) -> Callable[[asyncio.Task[None]], None]:
        def note(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._busy[host] -= 1
            if not self._busy[host]:
                del self._busy[host]
            self._news.set()

        return note

    async def _deliver(self, sender: Sender, url: str, view: JobView) -> None:
        try:
            state = await self._attempt(sender, url, view)
            await self._list.note(view.ref, state)
        except LedgerUnavailableError:
            pass  # it is due again when the lease is over
        except Exception:
            logger.exception("a webhook could not be delivered; retrying when its lease is over")

    async def _attempt(self, sender: Sender, url: str, view: JobView) -> WebhookState:
        n_attempts = read_state(url, view.webhook).attempts + 1
        job_id = id_of(view.ref.batch_id, view.ref.index)
        try:
            body = job_json(view.ref, view.head, view.status, view.outcome, self._settings.prefix)
            await sender.send(url, job_id.replace(".", "-"), body)  # no dot: it separates what is signed
        except (DeliveryError, ModelyardError) as error:
            text = str(error)
            is_over = n_attempts >= self._settings.webhook_attempts
            is_over |= isinstance(error, ModelyardError) or error.is_final
        else:
            self._count("delivered")
            now_ms = self._clock.now_ms()
            return WebhookState(url=url, status="delivered", attempts=n_attempts, delivered_at_ms=now_ms)
        if is_over:
            self._count("failed")
            logger.warning("the webhook of job %s was given up: %s", job_id, text, extra={"job_id": job_id})
            return WebhookState(url=url, status="failed", attempts=n_attempts, last_error=text)
        self._count("retried")
        next_ms = self._clock.now_ms() + pause_s(n_attempts, self._settings.webhook_backoff_s) * 1000
        return WebhookState(
            url=url, status="pending", attempts=n_attempts, next_attempt_at_ms=next_ms, last_error=text
        )


def pause_s(n_attempts: int, backoff_s: float) -> float:
    """Seconds until the next attempt: twice as long after each, with jitter so that many do not come together."""
    longest_s = min(backoff_s * 2.0 ** (n_attempts - 1), LONGEST_PAUSE_S)
    return longest_s * random.uniform(0.5, 1)


def keys_of(settings: ControllerSettings) -> list[bytes]:
    """The keys that sign webhooks; none where none are sent.

    Raises:
        ConfigurationError: There is no secret, or one is malformed.
    """
    if not settings.webhook_hosts:
        return []
    keys = signing_keys(f"{settings.webhook_secret} {_text(settings.webhook_secret_file)}")
    if not keys:
        raise ConfigurationError(
            "MODELYARD_WEBHOOK_HOSTS is set without a secret; set MODELYARD_WEBHOOK_SECRET, or "
            "MODELYARD_WEBHOOK_SECRET_FILE"
        )
    return keys


def _text(path: Path | None) -> str:
    try:
        return path.read_text() if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the webhook secret in {path} cannot be read: {error}") from None
