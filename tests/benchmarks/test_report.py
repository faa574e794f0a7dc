"""The benchmark's table and its reading of the machine."""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import machine
from benchmarks.bench import make_plan
from benchmarks.report import ACCEPTED, SYNC, Round, ratios, summarise, table, write_csv

ROUND = Round(
    number=1,
    system="modelyard",
    way=SYNC,
    connections=64,
    requests=100,
    per_s=4000.0,
    errors=0,
    checked=6,
    wrong=0,
    latency_ms={50.0: 15.0, 99.0: 25.0},
    cpu_us={"controller": 150.0, "worker": 80.0},
    generator_cpu_us=20.0,
    steal=0.0,
    foreign=0.0,
    is_noisy=False,
)
PEER = replace(ROUND, system="mosec", per_s=2000.0, cpu_us={"server": 300.0})


def test_a_summary_holds_medians_and_adds_up_errors() -> None:
    rounds = [replace(ROUND, per_s=per_s, errors=1, is_noisy=per_s < 2) for per_s in (1.0, 9.0, 5.0)]
    [summary] = summarise(rounds)
    assert (summary.per_s, summary.errors, summary.n_rounds, summary.n_noisy) == (5.0, 3, 3, 1)
    assert summary.total_cpu_us == 230.0


def test_a_table_has_a_row_for_each_system_and_marks_what_was_not_measured() -> None:
    rounds = [ROUND, replace(ROUND, way=ACCEPTED, per_s=5000.0), PEER]
    lines = table(summarise(rounds), (1, 64, 256), {"mosec": "mosec 0.9.8"}).splitlines()
    own, peer = (line.split(" | ") for line in lines[2:])
    assert own[:4] == ["| modelyard", "-", "4,000", "-"]
    assert "230 (controller 150, worker 80)" in own
    assert "5,000" in own
    assert peer[2] == "2,000"
    assert peer[-1] == "mosec 0.9.8 |"


def test_ratios_compare_at_the_same_number_of_connections() -> None:
    assert ratios(summarise([ROUND, PEER]), (1, 64)) == "- modelyard / mosec: 2.00 x at 64"


def test_every_round_is_a_line_of_the_csv_file(tmp_path: Path) -> None:
    write_csv([ROUND, PEER], tmp_path / "rounds.csv")
    with (tmp_path / "rounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["system"] for row in rows] == ["modelyard", "mosec"]
    assert rows[0]["cpu_us"] == '{"controller": 150.0, "worker": 80.0}'


def test_an_unknown_system_is_refused_by_name() -> None:
    with pytest.raises(SystemExit, match="unknown system nosuch; known: modelyard"):
        make_plan("modelyard,nosuch", quick=True, n_rounds=0)


def test_steal_and_foreign_cpu_time_make_a_round_noisy() -> None:
    before = machine.parse_times("cpu  100 0 100 800 0 0 0 0 0 0\n")
    quiet = machine.parse_times("cpu  300 0 100 1000 0 0 0 0 0 0\n")
    stolen = machine.parse_times("cpu  300 0 100 1000 0 0 0 100 0 0\n")
    known_s = 200 / machine.TICKS_PER_S
    assert not machine.noise(before, quiet, known_s).is_loud
    assert machine.noise(before, quiet, known_s / 2).foreign == pytest.approx(0.25)
    assert machine.noise(before, stolen, known_s).is_loud


def test_cpu_time_is_told_by_label_or_by_the_processes_own_name() -> None:
    pids = [os.getpid()]
    assert machine.cpu_by_label(pids, [("python", "tests")])["tests"] > 0
    assert "tests" not in machine.cpu_by_label(pids, [("no such words", "tests")])
