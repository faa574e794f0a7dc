"""Faults, injected into a pool of real processes under load: `make faults`, or `python -m faults`.

Each row of the table is one function in `faults/rows/`, registered with `@fault`. It gets a `Trial`, starts load with
`trial.load()`, injects its fault into `trial.pool` and notes the recovery time. The runner then reads the outcome of
every accepted job over HTTP and counts outcomes that were written twice.

- `table.py`: the register of rows and the table of results
- `trial.py`: runs one row
- `fault_pool.py`: Redis, controllers and workers as processes, each restarted when it dies; `shipped_pool.py` runs the
  Redis of docker-compose.yml, `sentinel_servers.py` a primary with replicas and Sentinels, `balancer.py` a load
  balancer, `proxy.py` a connection to Redis that can be cut
- `job_load.py`: posts jobs, remembers the accepted ones, accounts for them; `follow.py` does so during a long run
- `flood.py`, `accounting.py`: overload, and outcomes read from Redis in bulk
- `fault_models.py`, `fault_registry.py`: a model that misbehaves on request, and an MLflow registry that holds it
- `series.py`, `fsync.py`: resource use over time; the cost of `appendfsync always`
- `tests/faults/`: the short form of every row
"""
