"""A PyTorch model that answers an image per image, such as a mask."""

import mlflow
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from show import show

NAME = "Segmentation"
BODY = {"instances": np.linspace(0, 1, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4).round(3).tolist()}


class Segments(torch.nn.Module):
    def forward(self, image):
        return image.mean(1, keepdim=True)


mlflow.pytorch.log_model(
    Segments(),
    name="model",
    signature=ModelSignature(inputs=Schema([TensorSpec(np.dtype("float32"), (-1, 3, 4, 4))])),
    input_example=np.ones(
        (2, 3, 4, 4), np.float32
    ),  # two samples: of one, torch.export would make a constant
    serialization_format="pt2",
    pip_requirements=["torch"],
    registered_model_name=NAME,
)
show(NAME, BODY)
