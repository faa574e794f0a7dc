from __future__ import annotations

import pytest

from app.pool_file import Endpoint, NamedVersion, Serve
from cli.local_pool.desired_state import (
    MOST_VERSIONS,
    Target,
    Worker,
    desired_state,
    difference,
    question_of,
    service_name,
)
from training.registry_reader import ModelReading, Question, Reading

DIGITS = ModelReading(
    {1: {}, 2: {"serve": "true"}, 3: {"serve": "false"}, 4: {"serve": "true"}},
    {"champion": 2, "old": 1, "gone": 9},
    {1: 0.9, 2: 0.95, 3: 0.95},
)
READING = Reading({"digits": DIGITS, "empty": ModelReading()}, ("digits", "empty", "flowers"))


def entry(**fields: object) -> Serve:
    return Serve.model_validate({"model": "digits", **fields})


def served(*entries: Serve) -> list[str]:
    return [str(target.named) for target in desired_state(entries, READING).targets]


@pytest.mark.parametrize(
    ("versions", "numbers"),
    [
        ([1, 3], [1, 3]),
        (["champion"], [2]),
        (["latest"], [4]),
        (["best"], [3]),  # of equals, the newer one
        (["serve=true"], [2, 4]),
        (["old", "champion", 2], [1, 2]),
        (["serve=maybe"], []),
    ],
)
def test_words_name_versions(versions: list[int | str], numbers: list[int]) -> None:
    assert served(entry(versions=versions)) == [f"digits/{number}" for number in numbers]


def test_entry_without_versions_serves_champion_best_and_newest() -> None:
    desired = desired_state([entry()], READING)
    assert [(target.named.version, target.reasons) for target in desired.targets] == [
        (2, ("champion",)),
        (3, ("best",)),
        (4, ("latest",)),
    ]
    assert not desired.problems


def test_first_entry_that_names_a_version_states_its_options() -> None:
    entries = [
        entry(versions=[1], device="cpu"),
        entry(versions=[1, 2], replicas=2, allow_pickle_models=True),
    ]
    assert desired_state(entries, READING, replicas=3).targets == (
        Target(NamedVersion("digits", 1), (3, 3), (("MODELYARD_DEVICE", "cpu"),), ("version 1",)),
        Target(NamedVersion("digits", 2), (2, 2), (("ALLOW_PICKLE_MODELS", "true"),), ("version 2",)),
    )


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (entry(versions=[7]), "there is no version 7 of digits; it has 1, 2, 3, 4"),
        (
            entry(versions="campion"),
            "there is no alias campion of digits; its aliases, nearest first: champion",
        ),
        (entry(versions="gone"), "there is no alias gone"),
        (entry(model="flower"), "nearest first: flowers"),
        (entry(model="flowers"), "train one with `modelyard train`"),
    ],
)
def test_what_the_registry_lacks_is_a_problem_of_its_entry(wrong: Serve, told: str) -> None:
    ((where, text),) = desired_state([entry(versions=[1]), wrong], READING).problems
    assert where == ("serve", 1, "versions")
    assert told in text


def test_tag_that_no_version_has_is_told_and_no_problem() -> None:
    desired = desired_state([entry(versions=[1, "serve=ture"])], READING)
    assert desired.unmatched == (
        (("serve", 0, "versions"), "no version of digits has the tag serve=ture yet"),
    )
    assert not desired.problems


def test_model_keeps_its_versions_while_its_entries_name_what_it_lacks_until_they_are_deleted() -> None:
    before = [target(1), target(2, 2, 2), target(9), Target(NamedVersion("flowers", 1))]
    for words, numbers in (
        ([3, "campion"], [3, 1, 2]),
        ([3, 7], [3, 1, 2]),
        ([3], [3]),
        (["serve=ture", 3], [3]),
    ):
        desired = desired_state([entry(versions=words)], READING, before=before)
        assert [str(each.named) for each in desired.targets] == [f"digits/{number}" for number in numbers]
        assert all(each.replicas == (2, 2) for each in desired.targets if each.named.version == 2)


def test_version_that_an_endpoint_names_and_its_model_lacks_is_a_problem() -> None:
    seventh, elsewhere = NamedVersion("digits", 7), NamedVersion("other", 7)
    endpoints = {
        "front": Endpoint(models=("digits",), pinned=seventh, default_version=NamedVersion("digits", 1)),
        "lab": Endpoint(versions=(NamedVersion("digits", 2), seventh, elsewhere)),
    }
    text = "there is no version 7 of digits; it has 1, 2, 3, 4"
    assert desired_state([entry()], READING, endpoints=endpoints).problems == (
        (("endpoints", "front", "pinned"), text),
        (("endpoints", "lab", "versions"), text),
    )


def test_without_entries_each_model_is_served_but_few_versions_in_all() -> None:
    models = {f"m{index}": DIGITS for index in range(5)}
    desired = desired_state(None, Reading(models, tuple(models)))
    assert len(desired.targets) == MOST_VERSIONS
    assert {target.named.model for target in desired.targets if "champion" in target.reasons} == set(models)
    assert [str(target.named) for target in desired.left_out] == [
        "m0/4",
        "m1/4",
        "m2/4",
        "m3/3",
        "m3/4",
        "m4/3",
        "m4/4",
    ]


def test_qualities_are_asked_for_only_where_the_best_version_is_wanted() -> None:
    assert question_of([entry(versions=[1]), entry(model="flowers")]) == Question(
        ("digits", "flowers"), ("flowers",)
    )
    assert question_of(None) == Question(None, None)


def target(version: int, *replicas: int, **variables: str) -> Target:
    low, high = replicas or (1, 1)
    return Target(NamedVersion("digits", version), (low, high), tuple(variables.items()), ("why",))


def worker(name: str, version: int, **variables: str) -> Worker:
    return Worker(name, NamedVersion("digits", version), tuple(variables.items()))


def test_difference_starts_stops_and_keeps_workers() -> None:
    present = [worker("worker-digits-v1", 1), worker("worker-digits-v2", 2), worker("worker-digits-v2-2", 2)]
    plan = difference([target(2), target(3, 2, 2)], {}, present)
    assert plan.keep == (present[1],)
    assert plan.stop == (
        (present[0], "digits/1 is no longer wanted"),
        (present[2], "1 of digits/2 are wanted"),
    )
    assert plan.start == (
        (worker("worker-digits-v3", 3), "why"),
        (worker("worker-digits-v3-2", 3), "2 of digits/3 are wanted"),
    )


def test_worker_with_other_options_is_replaced_under_a_free_name() -> None:
    present = [worker("worker-digits-v1", 1)]
    plan = difference([target(1, DEVICE="cpu")], {}, present, stopping=["worker-digits-v1-2"])
    assert plan.start == ((worker("worker-digits-v1-3", 1, DEVICE="cpu"), "why"),)
    assert plan.stop == ((present[0], "its options have changed"),)


@pytest.mark.parametrize(("count", "wanted"), [(0, 2), (3, 3), (9, 4)])
def test_count_stays_between_from_and_to(count: int, wanted: int) -> None:
    plan = difference([target(1, 2, 4)], {NamedVersion("digits", 1): count}, [])
    assert len(plan.start) == wanted


def test_services_of_models_with_similar_names_have_different_names() -> None:
    names = {service_name(NamedVersion(model, 1)) for model in ("a b", "a_b", "a%b", "a;b")}
    assert len(names) == 4
    assert all(name.replace("-", "").replace("_", "").isalnum() for name in names)
