"""Faults, injected for real into a pool of real processes under load: `make faults`, or `python -m faults`.

Each row of the table is one function in `faults/rows/`, registered with `@fault`. It is given a `Trial`: starts
load with `trial.load()`, does its harm to `trial.pool`, and says how long recovery took. Whatever it did, the
runner then reads the outcome of every job that was accepted, over HTTP, and counts outcomes written twice.

- `table.py`: the register of rows and what a row tells;
- `pool.py`: Redis, controllers and workers as processes, each started again when it dies;
- `load.py`: posts jobs, remembers what was accepted, accounts for it;
- `flood.py`, `ledger.py`: more load than that, and its outcomes straight from Redis;
- `trial.py`: runs one row;
- `model.py`, `registry.py`: a model that can be told to misbehave, and an MLflow registry that holds it;
- `tests/faults/`: the short form of every row.
"""
