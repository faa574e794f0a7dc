"""A PyTorch module of your own: run it to train, and with the argument `predict` to call it."""

import sys

import mlflow
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import nll_loss

from modelyard import Client

images, labels = (torch.tensor(each) for each in load_digits(return_X_y=True))
images = images.float() / 16
options = {"serialization_format": "pt2", "registered_model_name": "My_Model", "pip_requirements": ["torch"]}


class OwnModule(torch.nn.Sequential):
    def forward(self, x):
        return super().forward(x).softmax(1)


if "predict" not in sys.argv:
    module = OwnModule(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        nll_loss(module(images[300:]).log(), labels[300:]).backward()
        optimizer.step()
    accuracy = (module(images[:300]).argmax(1) == labels[:300]).float().mean()
    with mlflow.start_run():
        mlflow.log_metric("val_accuracy", accuracy)  # a fraction in [0, 1], by which the controller routes
        # Two samples as example: of a single one, torch.export would make a constant.
        mlflow.pytorch.log_model(module.eval(), name="model", input_example=images[:2].numpy(), **options)
    print("Serve it: modelyard up --model My_Model")
else:
    with Client() as modelyard:  # MODELYARD_URL, or else http://127.0.0.1:9000
        print(modelyard.predict(images[6:9], model="My_Model").classes, "expected", labels[6:9].tolist())
