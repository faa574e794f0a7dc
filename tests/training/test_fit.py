"""Fitting is reproducible, and what comes out answers probabilities."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.architectures import ARCHITECTURES, Classifier
from training.datasets import Dataset, Split, load_dataset, stratified_split
from training.fit import Fitted, fit
from training.options import ARCHS, TrainOptions

OPTIONS = TrainOptions("unused", "unused", epochs=2)


@pytest.fixture(scope="module")
def digits() -> tuple[Dataset, Split]:
    dataset = load_dataset("digits", None, lambda *_: None)
    return dataset, stratified_split(dataset, 0.2, seed=0)


def fitted(digits: tuple[Dataset, Split], arch: str = "mlp", options: TrainOptions = OPTIONS) -> Fitted:
    return fit(arch, *digits, options, on_step=lambda *_: None, on_epoch=lambda _: None)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_same_seed_gives_the_same_weights_and_history(digits: tuple[Dataset, Split], arch: str) -> None:
    first, second = fitted(digits, arch), fitted(digits, arch)
    assert first.history == second.history
    for name, weights in first.network.state_dict().items():
        torch.testing.assert_close(weights, second.network.state_dict()[name], rtol=0, atol=0)


def test_another_seed_gives_other_weights(digits: tuple[Dataset, Split]) -> None:
    assert fitted(digits).history != fitted(digits, options=replace(OPTIONS, seed=1)).history


def test_fitting_leaves_the_random_state_of_the_process_alone(digits: tuple[Dataset, Split]) -> None:
    before = torch.get_rng_state()
    fitted(digits)
    torch.testing.assert_close(torch.get_rng_state(), before)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture_learns(digits: tuple[Dataset, Split], arch: str) -> None:
    history = fitted(digits, arch).history
    assert history[1].train_loss < history[0].train_loss
    assert history[-1].val_accuracy > 0.8


def test_progress_counts_every_step_and_epoch(digits: tuple[Dataset, Split]) -> None:
    steps: list[tuple[int, int]] = []
    epochs: list[int] = []
    result = fit(
        "mlp",
        *digits,
        OPTIONS,
        on_step=lambda *step: steps.append(step),
        on_epoch=lambda epoch: epochs.append(epoch.epoch),
    )
    total = 2 * 45  # 1438 samples in steps of 32
    assert steps == [(done, total) for done in range(1, total + 1)]
    assert epochs == [result.epoch for result in result.history] == [1, 2]


def test_the_evaluation_is_that_of_the_last_epoch(digits: tuple[Dataset, Split]) -> None:
    dataset, split = digits
    result = fitted(digits)
    right = result.evaluation.predicted == dataset.labels[split.val]
    assert result.history[-1].val_accuracy == result.evaluation.accuracy == pytest.approx(right.mean())


def test_options_and_architectures_name_the_same_things() -> None:
    assert set(ARCHS) == set(ARCHITECTURES)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_classifier_answers_probabilities(arch: str) -> None:
    with torch.inference_mode():
        answer = Classifier(ARCHITECTURES[arch]()).eval()(torch.rand(5, 1, 28, 28))
    np.testing.assert_allclose(answer.sum(dim=1), 1, atol=1e-5)
    assert answer.shape == (5, 10)
    assert (answer >= 0).all()
