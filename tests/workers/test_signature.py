"""Reading a version's signature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

from app.contract import Column, ColumnsContract, ColumnType, TensorContract
from workers.model_lookup import read_description
from workers.signature import read_outputs


def outputs(folder: Path, schema: Schema | None) -> object:
    signature = ModelSignature(Schema([TensorSpec(np.dtype("float32"), (-1, 2))]), schema)
    Model(signature=signature).save(str(folder / "MLmodel"))
    return read_outputs(read_description(str(folder)).signature)


def test_the_outputs_that_a_signature_states_are_read_and_others_are_unknown(tmp_path: Path) -> None:
    scores = Schema([TensorSpec(np.dtype("float32"), (-1, 10))])
    assert outputs(tmp_path, scores) == TensorContract("float32", (10,))
    assert outputs(tmp_path, Schema([ColSpec("double", "price")])) == ColumnsContract(
        (Column("price", ColumnType("double")),)
    )
    odd = Schema([TensorSpec(np.dtype("complex64"), (-1,))])
    assert outputs(tmp_path, odd) is None
    assert outputs(tmp_path, None) is None
