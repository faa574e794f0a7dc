"""Trains a model of your own and registers it, in an empty folder and without any setting.

Then, in the same folder: `MODEL_NAME=My_Model MODEL_VERSION=1 modelyard worker`, or `MODEL_NAME=My_Model modelyard up`.
"""

import mlflow
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

images, labels = load_digits(return_X_y=True)
split = train_test_split(images.astype(np.float32) / 16, labels, test_size=0.2, random_state=0)
train, val, train_labels, val_labels = map(torch.from_numpy, split)

model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(200):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(train), train_labels).backward()
    optimizer.step()
val_accuracy = (model(val).argmax(dim=1) == val_labels).float().mean().item()

served = torch.nn.Sequential(model, torch.nn.Softmax(dim=1)).eval()
row, scores = TensorSpec(np.dtype("float32"), (-1, 64)), TensorSpec(np.dtype("float32"), (-1, 10))
with mlflow.start_run():
    mlflow.log_metric("val_accuracy", val_accuracy)  # what the routing goes by, a fraction in [0, 1]
    mlflow.pytorch.log_model(
        served,
        name="model",
        signature=ModelSignature(inputs=Schema([row]), outputs=Schema([scores])),
        input_example=val[:2].numpy(),  # two samples: of one, torch.export would make a constant
        serialization_format="pt2",  # loads without running any code
        registered_model_name="My_Model",
        pip_requirements=["torch"],
    )
