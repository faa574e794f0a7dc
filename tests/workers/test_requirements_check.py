"""A version's requirements beside what is installed: shown where they differ, refused where the library is another."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from click.testing import CliRunner

from app.server_errors import ModelRequirementsError
from app.settings import WorkerSettings
from cli.commands.check_command import command
from modelyard.schemas import RequirementDifference
from tests.conftest import WaitUntil
from tests.pool_samples import RedisServer
from tests.workers.worker_processes import Start, ready_pids, records
from workers import model
from workers.model_lookup import ModelVersion
from workers.requirements_check import described, differences, obstacles, read_requirements

SKLEARN = version("scikit-learn")
OTHER_MAJOR = f"{int(SKLEARN.split('.')[0]) + 1}.0.0"


def write(folder: Path, *lines: str, python: str = "") -> ModelVersion:
    (folder / "requirements.txt").write_text("\n".join(lines))
    if python:
        (folder / "python_env.yaml").write_text(f"python: {python}\nbuild_dependencies:\n- pip\n")
    return ModelVersion("Plain", 1, "", str(folder), {"sklearn": {}, "python_function": {}}, {})


def test_only_requirements_that_apply_here_are_read(tmp_path: Path) -> None:
    lines = [
        "# a comment",
        "-r other.txt",
        "--find-links wheels",
        "./code/own.whl",
        "numpy==1.26.4 \\",
        "  --hash=sha256:0",
    ]
    lines += ["SciPy>=1.5  # why", "pywin32==300; sys_platform == 'win32'", "pandas[excel]<3", ""]
    write(tmp_path, *lines)
    assert [str(each) for each in read_requirements(str(tmp_path))] == [
        "numpy==1.26.4",
        "SciPy>=1.5",
        "pandas[excel]<3",
    ]


def test_what_is_missing_or_has_another_version_is_a_difference(tmp_path: Path) -> None:
    write(
        tmp_path,
        f"scikit-learn=={SKLEARN}",
        "numpy<1.20",
        "no-such-package-here==1.0",
        "torch==2.13.0",
        python="3.8.1",
    )
    python, numpy, missing = differences(str(tmp_path))
    assert (python.package, python.required) == ("python", "3.8.1")
    assert numpy == RequirementDifference("numpy", "<1.20", version("numpy"))
    assert missing == RequirementDifference("no-such-package-here", "==1.0", None)
    assert f"numpy<1.20 ({version('numpy')} installed), no-such" in described([python, numpy, missing])
    assert described([missing] * 20).endswith("no-such-package-here==1.0 (not installed) and 8 more")


def test_another_build_of_the_same_library_is_no_difference(tmp_path: Path) -> None:
    installed = version("xgboost-cpu")
    write(tmp_path, f"xgboost=={installed}", "xgboost-cpu>=1")
    assert differences(str(tmp_path)) == ()
    write(tmp_path, "XGBoost>=99")
    assert differences(str(tmp_path)) == (RequirementDifference("XGBoost", ">=99", installed),)
    found = msgspec.structs.replace(write(tmp_path, "xgboost-cpu==99.0"), flavors={"xgboost": {}})
    [problem] = obstacles(found, WorkerSettings())
    assert 'pip install "xgboost-cpu==99.0"' in problem.detail


def test_a_model_without_requirements_has_no_differences(tmp_path: Path) -> None:
    assert differences(str(tmp_path)) == ()


@pytest.mark.parametrize(
    ("line", "is_refused"),
    [
        (f"scikit-learn=={OTHER_MAJOR}", True),
        (f"scikit_learn>={OTHER_MAJOR}", True),
        ("scikit-learn==0.*", True),
        ("scikit-learn===of-our-own", True),
        (f"scikit-learn=={SKLEARN.split('.')[0]}.0", False),
        ("scikit-learn", False),
        ("numpy==0.5", False),
    ],
)
def test_another_major_version_of_the_flavors_own_library_is_refused(
    tmp_path: Path, line: str, is_refused: bool
) -> None:
    found = write(tmp_path, line)
    told: dict[str, Any] = {"allow_pickle_models": True}

    def refusals(settings: WorkerSettings) -> list[str]:
        problems = model.obstacles(found, settings)
        return [each.detail for each in problems if isinstance(each, ModelRequirementsError)]

    assert bool(refusals(WorkerSettings(**told))) is is_refused
    assert not refusals(WorkerSettings(**told, allow_major_mismatch=True))


def test_a_worker_and_check_show_the_differences_and_refuse_another_major_version(
    start_worker: Start, redis_server: RedisServer, wait_until: WaitUntil, registry: str
) -> None:
    wanted = {"MLFLOW_TRACKING_URI": registry, "MODEL_NAME": "Odd"}
    refused = start_worker("1", **wanted)
    worker = start_worker("1", **wanted, MODELYARD_ALLOW_MAJOR_MISMATCH="true")
    with redis.Redis.from_url(redis_server.url) as client:
        wait_until(lambda: ready_pids(client), timeout_s=120, what="the worker that was told serves")
        [record] = records(client)
    assert list(record.requirements) == [
        RequirementDifference("scikit-learn", f"=={OTHER_MAJOR}", SKLEARN),
        RequirementDifference("no-such-package-here", "==1.0", None),
    ]
    _, said = refused.communicate(timeout=120)
    assert refused.returncode == 1
    [line] = [line for line in said.splitlines() if line.startswith("modelyard worker: ")]
    for part in (f"scikit-learn=={OTHER_MAJOR} ({SKLEARN} installed)", "MODELYARD_ALLOW_MAJOR_MISMATCH=true"):
        assert part in line
    worker.terminate()
    _, said = worker.communicate(timeout=120)
    first = next(line for line in said.splitlines() if " workers." in line)
    assert "no-such-package-here==1.0 (not installed)" in first
    environment = {"MLFLOW_TRACKING_URI": registry, "MODELYARD_ALLOW_PICKLE_MODELS": "true"}
    done = CliRunner().invoke(command, ["models:/Odd/1"], env=environment)
    assert done.exit_code == 1, done.output
    for part in ("no-such-package-here==1.0 (not installed)", "[model_requirements]"):
        assert part in done.output
