"""The Celery application, as Celery's own command line finds it."""

from __future__ import annotations

import pytest

from app import celery_app
from app.celery_app import create_celery
from app.settings import Settings


def test_celerys_own_command_line_finds_one_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://nowhere")
    assert celery_app.celery_app is celery_app.app
    assert celery_app.celery_app.conf.broker_url == "redis://nowhere"
    with pytest.raises(AttributeError):
        _ = celery_app.no_such_name


def test_celery_never_unpickles() -> None:
    conf = create_celery(Settings(redis_url="redis://nowhere")).conf
    assert list(conf.accept_content) == ["json"]
