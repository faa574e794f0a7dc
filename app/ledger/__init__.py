"""The job ledger: the truth about every accepted job. The Celery message is only the wake-up.

A batch is one hash, `modelyard:batch:<batch>`:

| field | value | from | until |
| --- | --- | --- | --- |
| `head` | `BatchHead`, msgpack | accept | the record expires |
| `data` | all samples, C order, little-endian | accept | finish |
| `c:<index>` | the job is cancelled | cancel | the record expires |
| `by` | id of the worker that claimed it | claim | finish or requeue |
| `attempts` | claims so far | claim | the record expires |
| `at` | job that runs alone now, after a worker died with the batch | progress | claim or finish |
| `x:<index>` | times that a worker died with this job alone | claim | the record expires |
| `o:<index>` | `JobOutcome` of a job that ran alone, msgpack | progress or keep | the record expires |
| `out` | `BatchOutcome`, msgpack | finish | the record expires |
| `q:<index>` | samples of a quarantined job | finish | the record expires |
| `r:<index>` | id of the job that it was sent again as, see `quarantine` | resend | the record expires |

Each change is one Lua script (`app/redis/lua`), so that it happens whole or not at all, in one round trip; `commands`
renders its keys and arguments. Only large samples bypass Lua, which hashes and copies each value that it is given or
gets: the transaction that runs the accepting script writes them, and a worker reads them once it has claimed them.
State that can be derived is not stored: a job that nobody claimed by its deadline *is* expired, for every reader.
The count of a batch's open jobs stands beside its record, in `modelyard:open:<queue>`: a lost record does not take it
along.
"""
