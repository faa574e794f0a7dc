"""A model that does to its process what models do, as MLflow's models-from-code: nothing of it is pickled.

A sample is two numbers, float64; the first chooses the behaviour. What runs while the model loads stands in the
environment, as Python.
"""

from __future__ import annotations

import os
import signal
import sys

WELL, ENDS, EXITS, INTERRUPTS, TERMINATES, FORKS, CLOSES = range(7)
LOADING = "UNRULY_LOADING"


def predict(model_input):  # type: ignore[no-untyped-def]  # MLflow makes a schema of hints
    """The sum of each sample."""
    for behaviour in set(model_input[:, 0].astype(int)):
        _behave(behaviour)
    return model_input.sum(axis=1)


def _behave(behaviour: int) -> None:
    if behaviour == ENDS:
        os._exit(0)
    if behaviour == EXITS:
        sys.exit(0)
    if behaviour == INTERRUPTS:
        raise KeyboardInterrupt
    if behaviour == TERMINATES:
        os.kill(os.getpid(), signal.SIGTERM)
    if behaviour == FORKS and not (pid := os.fork()):
        sys.exit(3)
    if behaviour == FORKS and os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 3:
        raise RuntimeError("the process that the model has forked did not end as it wanted to")
    if behaviour == CLOSES:
        os.closerange(0, 256)


if __name__ != "tests.workers.unruly_model":  # MLflow runs this file; the tests only read its constants
    import mlflow.models

    exec(os.environ.get(LOADING, ""))
    mlflow.models.set_model(predict)
