"""A Parquet file of a batch is read in chunks, from any row on."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modelyard.batch.sources import ParquetFile

N_ROWS, GROUP_ROWS = 5003, 700


@pytest.mark.parametrize("chunk_rows", [1, 7, 100, 1000, 6000])
@pytest.mark.parametrize("start", [0, 1, GROUP_ROWS - 1, GROUP_ROWS, GROUP_ROWS + 1, N_ROWS - 4, N_ROWS])
def test_every_row_from_the_start_comes_once_and_in_order(
    start: int, chunk_rows: int, tmp_path: Path
) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"row": list(range(N_ROWS)), "text": [str(row) * 3 for row in range(N_ROWS)]})
    pq.write_table(table, path, row_group_size=GROUP_ROWS)
    source = ParquetFile(path)
    chunks = list(source.chunks(start, chunk_rows))
    assert all(0 < chunk.num_rows <= chunk_rows for chunk in chunks)
    assert [row for chunk in chunks for row in chunk.column("row").to_pylist()] == list(range(start, N_ROWS))
    assert source.progress() == 1.0
