"""A CNN that takes PNG and JPEG images: run it to train, and with the argument `predict` to call it."""

import sys
from pathlib import Path

import mlflow
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from modelyard import Body, Client

digits = load_digits()
labels = torch.tensor(digits.target)
images = torch.tensor(digits.images[:, None] / 16).float()  # shape (n, 1, 8, 8), in [0, 1]
options = {"serialization_format": "pt2", "registered_model_name": "Digits", "pip_requirements": ["torch"]}

if "predict" not in sys.argv:
    cnn = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10), nn.Softmax(1))
    optimizer = torch.optim.Adam(cnn.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.nll_loss(cnn(images[300:]).log(), labels[300:]).backward()
        optimizer.step()
    with mlflow.start_run():
        mlflow.log_metric("val_accuracy", (cnn(images[:300]).argmax(1) == labels[:300]).float().mean())
        # Two samples as example: of a single one, torch.export would make a constant.
        mlflow.pytorch.log_model(cnn.eval(), name="model", input_example=images[:2].numpy(), **options)
    Image.fromarray((digits.images[7] * 15.9).astype("uint8")).save("seven.png")
    print("Serve it: modelyard up --model Digits")
else:
    with Client() as modelyard:  # MODELYARD_URL, or else http://127.0.0.1:9000
        print(modelyard.predict(Body(Path("seven.png").read_bytes(), "image/png"), model="Digits").classes)
