"""A PyTorch model that answers a dictionary: one array per head."""

import mlflow
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from show import show

NAME = "Heads"
BODY = {"inputs": [[1.5, 2.5, 3.0], [0.1, 0.2, 0.3]]}


class Heads(torch.nn.Module):
    def forward(self, x):
        return {"label": x.sum(1, keepdim=True), "box": x * 2}


mlflow.pytorch.log_model(
    Heads(),
    name="model",
    signature=ModelSignature(inputs=Schema([TensorSpec(np.dtype("float32"), (-1, 3))])),
    input_example=np.ones((2, 3), np.float32),  # two samples: of one, torch.export would make a constant
    serialization_format="pt2",
    pip_requirements=["torch"],
    registered_model_name=NAME,
)
show(NAME, BODY)
