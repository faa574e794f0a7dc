"""What the compose file and the Dockerfile promise, read as text: no Docker engine is needed."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import ControllerSettings, WorkerSettings, load
from cli.local_pool.redis_server import REWRITE_SIZE

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
TARGETS = {"controller", "worker", "trainer", "flower", "mlflow"}
ONE_SHOT = {"trainer"}

every_service = pytest.mark.parametrize("name", SERVICES)


def stage(name: str) -> str:
    """Text of a stage of the Dockerfile."""
    match = re.search(rf"^FROM \S+ AS {name}$.*?(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert match, f"no stage {name}"
    return match[0]


def with_parents(name: str) -> str:
    """Text of a stage and of those that it is built from."""
    text = stage(name)
    parent = text.split()[1]
    return text if f" AS {parent}\n" not in DOCKERFILE else text + with_parents(parent)


def environment_of(name: str) -> dict[str, str]:
    return {key: str(value) for key, value in SERVICES[name].get("environment", {}).items()}


@every_service
def test_ports_are_published_on_loopback_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\$\{[A-Z_]+:-\d+\}:\d+", port)


@every_service
def test_every_service_that_stays_up_has_a_health_check_that_does_not_start_celery(name: str) -> None:
    if name in ONE_SHOT:
        assert "healthcheck" not in SERVICES[name]
        return
    check = " ".join(SERVICES[name]["healthcheck"]["test"])
    assert not re.search(r"celery|inspect|modelyard", check)


@every_service
def test_services_wait_for_what_they_need_to_be_healthy_or_done(name: str) -> None:
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        done = "service_completed_successfully" if needed in ONE_SHOT else "service_healthy"
        assert how["condition"] == done
        own, others = (SERVICES[each].get("profiles", []) for each in (name, needed))
        is_always_there = not others or (own and set(own) <= set(others))
        assert how.get("required", True) is bool(is_always_there)


@every_service
def test_every_service_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid"}
    assert "mem_limit" in service


def test_no_secret_is_written_down_or_in_an_environment() -> None:
    for text in ((ROOT / "docker-compose.yml").read_text(), DOCKERFILE):
        for line in text.splitlines():
            assert not re.search(r"requirepass|://[^/]*:[^/]*@", line)
    for name in SERVICES:
        for variable, value in environment_of(name).items():
            if variable == "MODELYARD_API_KEYS":  # hashes
                assert value == "${MODELYARD_API_KEYS:-}"
            elif re.search(r"PASS|SECRET|TOKEN|KEY|AUTH", variable):
                assert re.fullmatch(r"/run/secrets/[\w-]+", value)


def test_the_files_that_hold_secrets_are_neither_committed_nor_copied_into_an_image() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    copied = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".env", ".secrets/"} <= set(ignored)
    assert not {"!.env", "!.secrets"} & set(copied)
    assert all(secret["file"].startswith(".secrets/") for secret in COMPOSE["secrets"].values())
    assert not re.search(r"ARG \w*(PASS|SECRET|TOKEN|KEY)", DOCKERFILE)


@every_service
def test_every_service_gets_the_secrets_of_its_own_user_only(name: str) -> None:
    variables, secrets = environment_of(name), SERVICES[name].get("secrets", [])
    if name == "redis":
        assert set(secrets) == {secret for secret in COMPOSE["secrets"] if secret.startswith("redis-")}
        return
    others = {"flower": ["flower-login"], "prometheus": ["prometheus-key"]}.get(name, [])
    user = re.fullmatch(r"redis://(\w+)@redis:6379/0", variables.get("REDIS_URL", ""))
    assert secrets == [*([f"redis-{user[1]}"] if user else []), *others]
    if user:
        assert variables["REDIS_PASSWORD_FILE"] == f"/run/secrets/{secrets[0]}"


def test_every_secret_is_made_by_what_the_head_of_the_file_says() -> None:
    head = (ROOT / "docker-compose.yml").read_text().partition("name: modelyard")[0]
    users = re.search(r"for user in ([\w ]+); do .* > \.secrets/redis-\$user; done", head)
    touched = re.search(r"touch ((?:\.secrets/[\w-]+ ?)+)", head)
    assert users
    assert touched
    made = [f".secrets/redis-{user}" for user in users[1].split()] + touched[1].split()
    assert sorted(made) == sorted(secret["file"] for secret in COMPOSE["secrets"].values())


def test_flower_and_prometheus_read_their_secrets_where_they_are_mounted() -> None:
    assert environment_of("flower")["FLOWER_BASIC_AUTH_FILE"] == "/run/secrets/flower-login"
    scraped = yaml.safe_load((ROOT / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scraped["authorization"] == {"credentials_file": "/run/secrets/prometheus-key"}


@every_service
def test_the_log_of_every_service_is_bounded(name: str) -> None:
    logging = SERVICES[name]["logging"]
    assert logging["driver"] == "json-file"
    assert set(logging["options"]) == {"max-size", "max-file"}


@pytest.mark.parametrize(
    ("model_name", "expected"),
    [
        ("Churn", "MODEL_NAME=Churn is not the model of the demo: nothing is trained\n"),
        ("MNIST_PyTorch_Model", "train --arch mlp --arch cnn --missing\n"),
    ],
)
def test_the_trainer_registers_digits_only_as_the_model_of_the_demo(
    tmp_path: Path, model_name: str, expected: str
) -> None:
    (tmp_path / "modelyard").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "modelyard").chmod(0o755)
    *words, script = SERVICES["trainer"]["entrypoint"]
    done = subprocess.run(
        [*words, script.replace("$$", "$")],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "MODEL_NAME": model_name},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == expected
    assert environment_of("trainer")["MODEL_NAME"] == "${MODEL_NAME:-MNIST_PyTorch_Model}"


def test_redis_gets_a_password_for_each_user_by_no_argument_and_keeps_what_it_was_given(
    tmp_path: Path,
) -> None:
    script = SERVICES["redis"]["command"][-1].replace("$$", "$")
    users, server = script.split("exec ")
    for secret in SERVICES["redis"]["secrets"]:
        (tmp_path / secret).write_text(f"of-{secret}\n")
    filled = (
        users.replace("/run/secrets", str(tmp_path))
        .replace("/etc/redis-users.acl", str(ROOT / "deploy" / "redis-users.acl"))
        .replace("/tmp/users.acl", str(tmp_path / "users.acl"))
    )
    subprocess.run(["sh", "-euc", filled], check=True)
    written = (tmp_path / "users.acl").read_text().splitlines()
    assert written[0] == "user default off resetpass ~* &* +@all"
    for user, line in zip(("controller", "worker", "flower", "operator"), written[1:], strict=True):
        assert line.startswith(f"user {user} on ")
        assert line.endswith(f" >of-redis-{user}")
    assert (tmp_path / "users.acl").stat().st_mode & 0o077 == 0
    assert "--appendonly yes" in server
    assert f"--auto-aof-rewrite-min-size {REWRITE_SIZE}" in server
    assert "--maxmemory-policy noeviction" in server
    assert "redis-data:/data" in SERVICES["redis"]["volumes"]


def test_both_workers_are_alike_but_for_model_and_version_and_take_numbers_that_are_free() -> None:
    first, second = SERVICES["worker-1"], SERVICES["worker-2"]
    assert {**first, "environment": None} == {**second, "environment": None}
    own = [
        {key: environment_of(name).get(key) for key in ("MODEL_NAME", "MODEL_VERSION", "WORKER")}
        for name in ("worker-1", "worker-2")
    ]
    demo = "${MODEL_NAME:-MNIST_PyTorch_Model}"
    assert own == [
        {"MODEL_NAME": demo, "MODEL_VERSION": "${MODEL_VERSION:-1}", "WORKER": None},
        {
            "MODEL_NAME": f"${{MODEL_NAME_2:-{demo}}}",
            "MODEL_VERSION": "${MODEL_VERSION_2:-2}",
            "WORKER": None,
        },
    ]


def test_only_the_demo_trains_and_what_runs_without_a_profile_needs_neither_it_nor_mlflow() -> None:
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert profiles == {
        "trainer": ["demo"],
        "mlflow": ["demo", "registry"],
        "grafana": ["grafana"],
    }


def test_the_example_of_env_has_every_variable_of_the_file_with_its_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    asked = {
        name: with_defaults(default)
        for name, default in re.findall(r"(?<!\$)\$\{(\w+):-((?:[^{}]|\{[^{}]*\})*)\}", text)
    }
    nested = dict(re.findall(r"\$\{(\w+):-([^${}]*)\}", text))
    lines = (ROOT / ".env.example").read_text().splitlines()
    listed = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert listed == nested | asked | {"MODEL_NAME_2": "", "COMPOSE_PROFILES": ""}


@pytest.mark.parametrize("name", ["worker-1", "worker-2"])
def test_workers_can_be_scaled_and_have_time_to_drain(name: str) -> None:
    assert not SERVICES[name].keys() & {"container_name", "ports", "hostname"}
    assert SERVICES[name]["stop_grace_period"] == "60s"


def with_defaults(value: str) -> str:
    """A value as compose fills it in where no variable is set; inner references first."""
    while (filled := re.sub(r"\$\{\w+:-([^${}]*)\}", r"\1", value)) != value:
        value = filled
    return value


def test_the_environment_of_the_workers_and_the_controller_makes_valid_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, kind in (("worker-1", WorkerSettings), ("controller", ControllerSettings)):
        with monkeypatch.context() as patch:
            for key, value in environment_of(name).items():
                filled = value.replace("/run/secrets", str(tmp_path))
                patch.setenv(key, with_defaults(filled))
            settings = load(kind)
        user = name.partition("-")[0]
        (tmp_path / f"redis-{user}").write_text("s3cret\n")
        expected = f"redis://{user}:s3cret@redis:6379/0"
        assert settings.celery_broker_url == settings.effective_redis_url == expected
        assert settings.mlflow_tracking_uri == "http://mlflow:5000"


@every_service
def test_own_images_name_a_target_of_the_dockerfile_and_others_a_version(name: str) -> None:
    service = SERVICES[name]
    if "build" in service:
        assert service["build"]["target"] in TARGETS
        assert service["image"] == f"modelyard-{service['build']['target']}"
    else:
        assert re.fullmatch(r"[\w./-]+:v?\d[\w.-]*", service["image"])


def test_every_named_volume_is_used_and_declared() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    assert {mount.split(":")[0] for mount in mounts if not mount.startswith(".")} == set(COMPOSE["volumes"])


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_target_runs_as_an_ordinary_user(target: str) -> None:
    assert re.search(r"^USER modelyard$", stage(target), re.MULTILINE)


@pytest.mark.parametrize("target", ["controller", "flower"])
def test_the_controllers_and_flowers_images_have_neither_torch_nor_mlflow(target: str) -> None:
    (lock,) = re.findall(r"/requirements/(\w+\.lock)", with_parents(target))
    assert lock == f"{target}.lock"
    assert not re.search(r"^(torch|mlflow)", (ROOT / "requirements" / lock).read_text(), re.MULTILINE)


def test_the_workers_image_takes_more_packages_below_the_code_and_not_by_a_shell_that_expands_them() -> None:
    packages, code = stage("worker").split("COPY --from=project")
    assert "EXTRA_REQUIREMENTS" in packages
    assert "set -f" in packages
    assert "EXTRA_REQUIREMENTS" not in code
    build = SERVICES["worker-1"]["build"]["args"]
    assert build["EXTRA_REQUIREMENTS"] == "${EXTRA_REQUIREMENTS:-}"


def test_the_registrys_image_has_no_torch() -> None:
    text = with_parents("mlflow")
    assert "--requirement" not in text
    assert "--torch-backend" not in text


@pytest.mark.parametrize(("target", "lock"), [("worker", "worker.lock"), ("trainer", "training.lock")])
def test_code_lies_above_the_packages_of_its_lock(target: str, lock: str) -> None:
    assert f"/requirements/{lock}" in with_parents(target)
    assert "COPY --from=project" in stage(target)
    for packages in re.findall(r"^FROM \S+ AS (\w+-packages)$", DOCKERFILE, re.MULTILINE):
        assert "COPY" not in stage(packages)


def test_the_dockerfile_names_no_host_and_asks_for_no_frontend() -> None:
    assert not re.search(r"https?://", DOCKERFILE)
    assert not re.search(r"^#\s*syntax\s*=", DOCKERFILE, re.MULTILINE)


def test_the_build_context_has_all_that_the_dockerfile_copies_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    listed = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
        for source in sources.split()
    }
    whole = {source for source in copied if not any(source.startswith(f"{each}/") for each in copied)}
    assert "*" in lines
    assert listed == whole | {"requirements"}
