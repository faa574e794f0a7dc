"""Faults of controllers: SIGTERM while callers wait, and SIGKILL."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import httpx

from cli.local_pool.programs import http_answers
from faults.fault_pool import TIGHT_LIMITS
from faults.job_load import POST_TIMEOUT_S, good_jobs, http_client, job
from faults.table import fault
from faults.trial import Trial

N_WAITING = 500
WAIT_S = 25
QUERY = "worker=1&deadline=300"
PLUG_S = 1.5  # below the plan's time limit for a pass
PLUGS_APART_S = 0.1  # more than a job is held for its batch to fill


@fault("controller-terminated", f"SIGTERM of a controller with {N_WAITING} waiting callers", TIGHT_LIMITS)
async def controller_terminated(trial: Trial) -> None:
    """Each caller gets its outcome or a 503 naming its job within the drain time; the other controller goes on."""
    if trial.short:
        await terminate_while_callers_wait(trial, N_WAITING // 5, n_plugs=4)
        return
    for n_plugs in (4, 20):  # within the drain time, and beyond it
        await terminate_while_callers_wait(trial, N_WAITING, n_plugs)
        await asyncio.to_thread(trial.pool.wait_until_well)


async def terminate_while_callers_wait(trial: Trial, n_callers: int, n_plugs: int) -> None:
    """Occupy the workers with slow batches so that all callers wait; with many, for longer than the drain time."""
    doomed, *others = trial.pool.controllers
    answers: Counter[str] = Counter()
    for number in range(n_plugs):
        await trial.submit(job(number, seconds=PLUG_S))
        await asyncio.sleep(PLUGS_APART_S)
    limits = httpx.Limits(max_connections=n_callers)
    async with http_client(timeout=POST_TIMEOUT_S, limits=limits) as http:
        url = trial.pool.url(doomed)
        waiting = [asyncio.create_task(one_caller(trial, http, url, n, answers)) for n in range(n_callers)]
        await trial.until(lambda: answers.total() + trial.pool.backlog() >= n_callers, "all have posted")
        n_waiting = n_callers - answers.total()
        async with trial.load(good_jobs(), urls=lambda: [trial.pool.url(each) for each in others]):
            exits, stopped_at = len(doomed.exits), time.monotonic()
            doomed.terminate()
            await asyncio.gather(*waiting)
            trial.recovered(time.monotonic() - stopped_at)
            await trial.until(lambda: len(doomed.exits) > exits, "the controller has ended")
    trial.require(doomed.exits[-1][1] == 0, f"the controller ended with {doomed.exits[-1]}")
    trial.require(answers.keys() <= {"outcome", "503 naming the job"}, f"callers received {dict(answers)}")
    told = ", ".join(f"{count} with {what}" for what, count in answers.items())
    trial.note(f"{n_waiting} callers behind {n_plugs} batches of {PLUG_S:g} s: {told}")


async def one_caller(
    trial: Trial, http: httpx.AsyncClient, url: str, number: int, answers: Counter[str]
) -> None:
    """Post a job, wait for its outcome, and count the answer."""
    recipe = job(number)
    try:
        answer = await http.post(f"{url}/predict?{QUERY}&wait={WAIT_S}", json={"data": recipe.samples})
    except httpx.HTTPError as error:
        answers[repr(error)] += 1
        return
    told = answer.json()
    if "id" in told:
        trial.sent.accepted[told["id"]] = recipe
    names_job = answer.status_code == 503 and told.get("result_url") == f"/results/{told.get('id')}"
    is_outcome = answer.status_code == 200 and recipe.is_met_by(told)
    answers["outcome" if is_outcome else "503 naming the job" if names_job else str(answer.status_code)] += 1


@fault("controller-killed", "SIGKILL of one of two controllers every 3 s for 30 s", TIGHT_LIMITS)
async def controller_killed(trial: Trial) -> None:
    """Every job that it answered 202 ends, and either controller answers for it."""
    async with trial.load(good_jobs()):
        doomed = trial.pool.controllers[0]
        url = trial.pool.url(doomed)
        for _ in range(1 if trial.short else 10):
            await asyncio.sleep(0.5 if trial.short else 3)
            doomed.kill()
            killed_at = time.monotonic()
            await trial.until(lambda: doomed.is_alive and http_answers(f"{url}/readyz"), "it is back", 60)
            trial.recovered(time.monotonic() - killed_at)
