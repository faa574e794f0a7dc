"""Decides which model files load without running their author's code, and refuses the others.

Four kinds do: `torch.export` archives (`pt2`), skops files without custom types, the native formats of XGBoost and
LightGBM, and ONNX. All others (pickled PyTorch and scikit-learn models, and other models of `mlflow.pyfunc`) run code
of their author when they are loaded. So does a pickled tensor inside an archive, unless PyTorch is configured to refuse
it.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.server_errors import ModelNotAllowedError

PT2_FILE = "model.pt2"
PICKLED_FILE = "model.pth"  # MLflow prefers this file if a folder has both
TORCH_LOADER = "mlflow.pytorch"
# Below an archive's root: compiled code, and constants that are objects rather than tensors.
COMPILED = "data/aotinductor/"
CONSTANTS, TENSOR_CONSTANTS = "data/constants/", ("tensor_", "model_constants_config.json", "model.pt")
# Classes whose `load_model` reads the library's native format; MLflow imports any class that the MLmodel file names.
XGBOOST_CLASS = re.compile(r"xgboost\.(core\.Booster|sklearn\.XGB\w+)")
LIGHTGBM_CLASS = "lightgbm.basic.Booster"
ONNX_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # others load libraries that options name

Kind = Literal["pt2", "skops", "onnx", "library", "code"]


@dataclass(frozen=True, slots=True)
class Loading:
    """How a model loads.

    Attributes:
        kind: `pt2` by PyTorch, `skops` by skops, `onnx` by ONNX Runtime, `library` by its MLflow flavor, which
            unpickles nothing; `code` runs code that came with it.
        file: The loaded file within the model's folder; empty if unknown.
        reason: Why it is `code`, for a message after the model's name; otherwise empty.
    """

    kind: Kind
    file: str = ""
    reason: str = ""


def loading(flavors: Mapping[str, Any], folder: Path) -> Loading:
    """Determine from a model's files how it loads.

    Args:
        flavors: Flavors in the model's MLmodel file.
        folder: Folder of the downloaded model.
    """
    pyfunc = _conf(flavors, "python_function")
    if any(conf.get("code") for conf in flavors.values() if isinstance(conf, Mapping)):
        return Loading("code", reason="brings Python code of its own")
    if "pytorch" in flavors:
        return _torch(flavors, folder)
    loader = str(pyfunc.get("loader_module", ""))
    # A flavor reads the description beside the file that this one names: in a subfolder that would be another one.
    data = str(pyfunc.get("model_path") or pyfunc.get("data") or "")
    if data and not _is_plain(data):
        return Loading("code", data, f"is loaded from {data}, which is outside the top folder of its files")
    if loader == "mlflow.sklearn":
        return _sklearn(_conf(flavors, "sklearn"), folder, data)
    if loader in ("mlflow.xgboost", "mlflow.lightgbm", "mlflow.onnx"):
        return _library(_conf(flavors, loader.removeprefix("mlflow.")), loader, folder)
    named = f"{data} by {loader}" if data else loader or "no loader known to MLflow"
    return Loading(
        "code", data, f"is pickled or code ({', '.join(sorted(flavors)) or 'no flavor'}): loads {named}"
    )


def require_safe(flavors: Mapping[str, Any], folder: Path, uri: str) -> Loading:
    """Return how a model loads, if that runs no code.

    Args:
        uri: Name of the model for the message.

    Raises:
        ModelNotAllowedError: Loading it would run code.
    """
    found = loading(flavors, folder)
    if found.reason:
        raise refusal(uri, found.reason)
    return found


def pt2_file(flavors: Mapping[str, Any], folder: Path) -> Path:
    """The one file of a `pt2` model."""
    return folder / str(flavors["pytorch"].get("model_data", "")) / PT2_FILE


def refusal(uri: str, reason: str) -> ModelNotAllowedError:
    """The error for a model that is not allowed."""
    return ModelNotAllowedError(
        f"{uri} {reason}, so loading it may run any code; log it as mlflow.pytorch with "
        'serialization_format="pt2", as mlflow.sklearn with serialization_format="skops" and no trusted types, or as '
        "ONNX, XGBoost or LightGBM in their own formats; or, if you trust every writer to the registry, set "
        "MODELYARD_ALLOW_PICKLE_MODELS=true"
    )


def _torch(flavors: Mapping[str, Any], folder: Path) -> Loading:
    loader = _conf(flavors, "python_function").get("loader_module", TORCH_LOADER)
    if loader != TORCH_LOADER:
        return Loading("code", reason=f"brings Python code of its own (its loader is {loader})")
    file = pt2_file(flavors, folder)
    name = _within(file, folder)
    pickled = file.with_name(PICKLED_FILE)
    if pickled.exists() or not zipfile.is_zipfile(file):
        shown = _within(pickled if pickled.exists() else file, folder)
        return Loading("code", shown, f"is pickled ({shown}), not a pt2 file")
    with zipfile.ZipFile(file) as archive:
        # PyTorch finds records case-insensitively.
        records = [record.partition("/")[2].lower() for record in archive.namelist()]
    if any(map(_is_code, records)):
        return Loading("code", name, f"is a pt2 file with code or a pickle inside ({name})")
    return Loading("pt2", name)


def _is_code(record: str) -> bool:
    """Whether PyTorch would run or unpickle a record unconditionally."""
    if record.startswith(CONSTANTS):
        return not record.removeprefix(CONSTANTS).startswith(TENSOR_CONSTANTS)
    return record.startswith(COMPILED)


def _sklearn(conf: Mapping[str, Any], folder: Path, data: str) -> Loading:
    file, form = str(conf.get("pickled_model") or data), conf.get("serialization_format", "pickle")
    if form != "skops":
        return Loading("code", file, f"is pickled ({file}, by scikit-learn's {form})")
    trusted = conf.get("skops_trusted_types")
    if trusted:
        return Loading("code", file, f"trusts types chosen by its author ({file}: {str(trusted)[:200]})")
    if not _is_plain(file) or not zipfile.is_zipfile(folder / file):
        return Loading("code", file, f"says that {file or 'no file'} is skops, but it is not")
    return Loading("skops", file)


def _library(conf: Mapping[str, Any], loader: str, folder: Path) -> Loading:
    file, of_class = str(conf.get("data", "")), str(conf.get("model_class", ""))
    if not _is_plain(file) or not (folder / file).is_file():
        return Loading(
            "code", file, f"names {file or 'no file'} as its {loader} model, which is not in its top folder"
        )
    if loader == "mlflow.xgboost" and of_class and not XGBOOST_CLASS.fullmatch(of_class):
        return Loading("code", file, f"is loaded by the class {of_class}, which is not part of XGBoost")
    if loader == "mlflow.lightgbm" and of_class not in ("", LIGHTGBM_CLASS):
        form = "in skops" if conf.get("serialization_format") == "skops" else "pickled"
        return Loading("code", file, f"is a {of_class} {form} ({file}; log its booster_, which is text)")
    if loader == "mlflow.onnx":
        providers = conf.get("providers") or ()
        if conf.get("onnx_session_options") or any(each not in ONNX_PROVIDERS for each in providers):
            return Loading("code", file, "asks ONNX Runtime for options that may load libraries")
        return Loading("onnx", file)
    return Loading("library", file)


def _is_plain(name: str) -> bool:
    return bool(name) and name not in (".", "..") and "/" not in name and "\\" not in name


def _within(file: Path, folder: Path) -> str:
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)


def _conf(flavors: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    conf = flavors.get(name)
    return conf if isinstance(conf, Mapping) else {}
