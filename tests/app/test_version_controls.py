"""The stored form of operators' decisions, which older releases read too."""

from __future__ import annotations

import json

from app.version_controls import Control, encode_control, read_table


def test_a_decision_without_a_number_of_workers_is_stored_without_the_field() -> None:
    control = Control(state="retired", version=2, by="", reason="", at_ms=1.0)
    assert "replicas" not in json.loads(encode_control(control))
    former = b'{"state":"retired","version":2,"by":"","reason":"","at_ms":1.0,"replicas":0}'
    table = read_table({b"new": encode_control(control), b"former": former})
    assert {str(each) for each in table.values()} == {"retired"}
