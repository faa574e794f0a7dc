"""Says which LightGBM boosters take one matrix instead of a DataFrame, which LightGBM would convert to the same matrix.

The booster's own conversion and MLflow's wrapper take four times as long as the trees for a batch of single rows. The
answers are equal: LightGBM reads columns by position, and all numbers as float64.
"""

from __future__ import annotations

from typing import Any

from app.contract import Contract
from workers.job_inputs import is_numeric
from workers.model_lookup import ModelVersion


def takes_matrix(model: Any, found: ModelVersion, contract: Contract) -> bool:
    """Whether a model is a booster that MLflow would only call, and its columns are numbers.

    A booster that was trained on columns of pandas's type `category` needs them again.
    """
    own_loader = found.flavors.get("python_function", {}).get("loader_module") == "mlflow.lightgbm"
    if not own_loader or contract.params or not is_numeric(contract):
        return False
    kind = type(model)  # by its name: LightGBM is the version's requirement, not the worker's
    is_booster = kind.__name__ == "Booster" and kind.__module__.partition(".")[0] == "lightgbm"
    return is_booster and not model.pandas_categorical
