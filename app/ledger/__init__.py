"""The job ledger: the authoritative record of every accepted job. The Celery message only wakes a worker.

A batch is one hash, `modelyard:batch:<batch>`:

| field | value | from | until |
| --- | --- | --- | --- |
| `head` | `BatchHead`, msgpack | accept | the record expires |
| `data` | all samples, C order, little-endian; of large ones the last piece | accept | finish |
| `p:<index>` | the pieces before it | before accept | finish |
| `c:<index>` | the job is cancelled | cancel | the record expires |
| `by` | id of the worker that claimed it | claim | finish or requeue |
| `attempts` | claims so far | claim | the record expires |
| `at` | job that runs alone now, after a worker died with the batch | progress | claim or finish |
| `x:<index>` | number of worker deaths while this job ran alone | claim | the record expires |
| `o:<index>` | `JobOutcome` of a job that ran alone, msgpack | progress or keep | the record expires |
| `to` | running key of the queue that it was moved to: no other queue can claim it | reroute | the record expires |
| `out` | `BatchOutcome`, msgpack | finish | the record expires |
| `q:<index>` | samples of a quarantined job | finish | the record expires |
| `r:<index>` | id of the new job when it was resent, see `quarantine` | resend | the record expires |
| `w:<index>` | state of the job's webhook, JSON, see `webhook_list` | first attempt | the record expires |

Each change is one Lua script (`app/redis/lua`), so that it is atomic and takes one round trip; `commands` renders its
keys and arguments. Only large samples bypass Lua, because Lua hashes and copies each value that it reads or writes.
The transaction that runs the accepting script writes them, and a worker reads them after it has claimed the batch. What
is larger than a piece is written and read piece by piece, so that other batches pass in between.
State that can be derived is not stored: a job without a claim at its deadline *is* expired, for every reader.
The count of a batch's open jobs is stored outside its record, in `modelyard:open:<queue>`, so that it survives the
loss of the record.
"""
