"""The model of the fault tests, as MLflow models-from-code: nothing is pickled.

A sample is four numbers, float64: `[answer, behaviour, seconds, sample_seconds]`. The answer is returned as
the predicted class, so that every outcome can be checked against its request. The behaviour is a constant below.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import time

import numpy as np

N_CLASSES = 10
WELL = 0  # sleeps for the longest `seconds` of the pass plus all `sample_seconds`, then answers
RAISES = 1
ABORTS = 2  # like a failed assertion in native code
OUT_OF_MEMORY = 3  # native code writes to a failed allocation
HANGS = 4  # a call that Python can interrupt
HANGS_NATIVE = 5  # a call that never returns to Python, without the GIL
HANGS_WITH_GIL = 6  # the same, holding the GIL
KILLED = 7  # as by the kernel's out-of-memory killer
WAITS = 8  # until the file `GATE` is removed
GATE = "gate"  # a file in the pool's folder

MUTEX_BYTES = 64  # pthread_mutex_t; all zeros is an unlocked one
OUT_OF_MEMORY_BYTES = 2**40


def predict(model_input):  # type: ignore[no-untyped-def]  # MLflow derives a schema from type hints
    """Scores, float64, shape (n_samples, 10), for samples float64, shape (n_samples, 4)."""
    for behaviour in sorted(set(model_input[:, 1].astype(int)) - {WELL}):
        _misbehave(behaviour)
    # Not time.sleep: libfaketime, which one row uses, makes it fail with an invalid argument.
    select.select([], [], [], float(model_input[:, 2].max() + model_input[:, 3].sum()))
    scores = np.zeros((len(model_input), N_CLASSES))
    scores[np.arange(len(model_input)), model_input[:, 0].astype(int)] = 1.0
    return scores


def _misbehave(behaviour: int) -> None:
    if behaviour == RAISES:
        raise ValueError("the model rejects this sample")
    if behaviour == ABORTS:
        os.abort()
    if behaviour == OUT_OF_MEMORY:
        _run_out_of_memory()
    if behaviour == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    while behaviour == HANGS or (behaviour == WAITS and os.path.exists(GATE)):
        time.sleep(0.01)
    if behaviour == HANGS_NATIVE:
        _lock_twice(ctypes.CDLL(None))
    if behaviour == HANGS_WITH_GIL:
        _lock_twice(ctypes.PyDLL(None))


def _run_out_of_memory() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (2**20, resource.getrlimit(resource.RLIMIT_AS)[1]))
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    ctypes.memset(libc.malloc(OUT_OF_MEMORY_BYTES), 1, 1)


def _lock_twice(libc: ctypes.CDLL) -> None:
    # Unlike most calls, the wait for a mutex is not interrupted by signals: this never returns.
    mutex = ctypes.create_string_buffer(MUTEX_BYTES)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


if __name__ != "faults.fault_models":  # MLflow executes this file; the rows only read its constants
    import mlflow.models

    mlflow.models.set_model(predict)
