"""A PyTorch model with two named inputs of different types."""

import mlflow
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from show import show

NAME = "Two_Inputs"
BODY = {"inputs": {"ids": [[1, 2, 3], [4, 5, 6]], "mask": [[1, 0, 1], [1, 1, 0.5]]}}


class Masked(torch.nn.Module):
    def forward(self, ids, mask):
        return {"sum": (ids * mask).sum(1), "each": ids.to(torch.float32) * mask}


mlflow.pytorch.log_model(
    Masked(),
    name="model",
    signature=ModelSignature(
        inputs=Schema(
            [TensorSpec(np.dtype("int64"), (-1, 3), "ids"), TensorSpec(np.dtype("float32"), (-1, 3), "mask")]
        )
    ),
    input_example=(
        np.ones((2, 3), np.int64),
        np.ones((2, 3), np.float32),
    ),  # two samples: of one, torch.export would make a constant
    serialization_format="pt2",
    pip_requirements=["torch"],
    registered_model_name=NAME,
)
show(NAME, BODY)
