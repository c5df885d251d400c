"""Toy trainings: what can be known is learnt, what cannot be known is not, and a leak would show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llava.model.autoregressive_reconstruction import roll_out
from llava.model.autoregressive_reconstruction.targets import make_targets
from tests.unit.model.autoregressive_reconstruction.rows import ToyLanguageModel, lay_out
from tests.unit.model.autoregressive_reconstruction.toy import (
    HIDDEN,
    WIDTH,
    colour_clips,
    features_of,
    judge,
    make_module,
    make_tower,
    moving_clips,
    noise_clips,
    train,
    turning_clips,
)

SMALL: dict[str, Any] = {"context": "none", "predictor_dim": 64, "num_layers": 2, "num_hist": 3}


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def unseen():
    return torch.Generator().manual_seed(9)


def variance_of_targets(module, clips: Tensor) -> float:
    """The error of whoever knows the mean of every patch and nothing else."""
    targets = make_targets(features_of(module, clips), 1, "layer_norm")
    return float((targets - targets.mean(dim=(0, 1))).square().mean())


def noise_ratio(clips: Tensor, test: Tensor, steps: int, **config: Any) -> float:
    """Error of a trained predictor on unseen noise as a share of the variance of its targets."""
    module = make_module(**{**SMALL, "head": "direct", **config})
    train(module, clips, steps, learning_rate=3e-3 if steps > 500 else 5e-3)
    return judge(module, test)["autoregressive_mse"] / variance_of_targets(module, test)


def test_frames_without_a_rule_cannot_be_predicted_unless_they_leak(generator, unseen):
    clips, test = colour_clips(512, 5, generator), colour_clips(128, 5, unseen)
    honest, leaking = (noise_ratio(clips, test, 150, use_frame_causal_mask=honest) for honest in (True, False))
    print(f"\nerror / variance of colours drawn anew: honest {honest:.3f}, leaking {leaking:.3f}")
    assert honest >= 0.95 and leaking < 0.1


@pytest.mark.slow
def test_noise_stays_noise_for_1500_steps_unless_it_leaks(generator, unseen):
    clips, test = noise_clips(1024, 4, generator), noise_clips(64, 4, unseen)
    honest, leaking = (noise_ratio(clips, test, 1500, use_frame_causal_mask=honest) for honest in (True, False))
    print(f"\nerror / variance of noise after 1,500 steps: honest {honest:.3f}, leaking {leaking:.4f}")
    assert honest >= 0.95 and leaking < 0.1


def language_noise_ratio(steps: int, *, is_honest: bool) -> float:
    """As `noise_ratio`, through a language model that has seen whole rows and is trained along."""
    num_frames, generator = 4, torch.Generator().manual_seed(0)
    module = make_module(
        make_tower(), **{**SMALL, "context": "language", "head": "direct", "use_frame_causal_mask": is_honest}
    )
    language = ToyLanguageModel(WIDTH, HIDDEN)
    layout = lay_out([num_frames] * 8, num_frames, packed=False)
    words = torch.zeros(*layout.frame_of.shape, HIDDEN)
    weights = [*module.parameters(), *language.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    errors, variances = [], []
    for step in range(steps):
        features = features_of(module, colour_clips(8, num_frames, generator))  # new ones at every step
        loss = module(language(features, words, layout), frame_features=features, **layout.known()).loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step >= steps - 50:
            targets = F.layer_norm(features, features.shape[-1:])
            errors.append(float(loss.detach()))
            variances.append(float((targets - targets.mean(dim=(0, 1))).square().mean()))
    return sum(errors) / sum(variances)


@pytest.mark.slow
def test_noise_does_not_leak_through_the_language_model():
    honest, leaking = (language_noise_ratio(1500, is_honest=is_honest) for is_honest in (True, False))
    print(f"\nerror / variance through the language model: honest {honest:.3f}, leaking {leaking:.3f}")
    assert honest >= 0.95 and leaking < 0.1


def rollout_ratios(module, clips: Tensor) -> list[float]:
    """Error at horizon 1..4 as a share of that of copying the last frame seen."""
    targets = make_targets(features_of(module, clips), 1, "layer_norm")
    predicted = roll_out(module, targets[:, :4], 4)
    copied = targets[:, 3:4] - targets[:, 4:]
    return ((predicted - targets[:, 4:]).square().mean((0, 2, 3)) / copied.square().mean((0, 2, 3))).tolist()


def moving_results(steps: int, generator: torch.Generator, unseen: torch.Generator) -> tuple[float, float, list[float]]:
    module = make_module(**SMALL)
    train(module, moving_clips(512, 8, generator), steps)
    test = moving_clips(128, 8, unseen)
    read = judge(module, test)
    ratio, delta, horizons = (
        1 - read["autoregressive_skill"],
        read["autoregressive_delta_cosine"],
        rollout_ratios(module, test),
    )
    steps_ahead = ", ".join(f"{value:.2f}" for value in horizons)
    print(f"\n{steps} steps: MSE / copy {ratio:.3f}, delta cosine {delta:.3f}, horizons 1..4: {steps_ahead}")
    return ratio, delta, horizons


def test_a_moving_disc_is_predicted_better_than_copied(generator, unseen):
    ratio, delta, _ = moving_results(160, generator, unseen)
    assert ratio <= 0.6 and delta >= 0.6


@pytest.mark.slow
def test_a_moving_disc_is_predicted_four_frames_ahead(generator, unseen):
    ratio, delta, horizons = moving_results(600, generator, unseen)
    assert ratio <= 0.3 and delta >= 0.75
    assert max(horizons) <= 0.6


def turn_errors(steps: int, generator: torch.Generator, unseen: torch.Generator) -> tuple[float, float]:
    """(error of the predictor that is told the turns, error of the one that is not), each of its own training."""
    clips, motions = turning_clips(512, 6, generator)
    test, test_motions = turning_clips(128, 6, unseen)
    told, blind = make_module(**SMALL, condition_on_action="history"), make_module(**SMALL)
    train(told, clips, steps, motions=motions)
    train(blind, clips, steps)
    errors = judge(told, test, motions=test_motions)["autoregressive_mse"], judge(blind, test)["autoregressive_mse"]
    print(
        f"\n{steps} steps, balanced turns: told {errors[0]:.3f}, not told {errors[1]:.3f}, {errors[0] / errors[1]:.2f}"
    )
    return errors


def test_knowing_the_turn_lowers_the_error_of_turns(generator, unseen):
    told, blind = turn_errors(150, generator, unseen)
    assert told < 0.9 * blind


@pytest.mark.slow
def test_knowing_the_turn_halves_the_error_of_turns(generator, unseen):
    told, blind = turn_errors(600, generator, unseen)
    assert told < 0.5 * blind
