"""Linear probes on data whose answer is known."""

from __future__ import annotations

import pytest
import torch

from playground.experiments.reconstruction.heldout import DecisionPoint, decisions_of
from playground.experiments.reconstruction.measure import cross_entropies, probe
from playground.experiments.reconstruction.probes import logistic_predictions, ridge_predictions


def test_a_linear_value_is_read_off_whatever_scale_the_features_have():
    torch.manual_seed(0)
    features = torch.randn(200, 3) * torch.tensor([1e-3, 1.0, 1e3]) + 5.0
    values = 2.0 + 1000 * features[:, 0] - features[:, 1]
    guess = ridge_predictions(features[:150], values[:150], features[150:], penalty=1e-6)
    assert torch.allclose(guess, values[150:].double(), atol=1e-2)


def test_a_constant_feature_leaves_the_mean():
    values = torch.tensor([1.0, 2.0, 3.0])
    assert ridge_predictions(torch.ones(3, 2), values, torch.ones(1, 2)).item() == pytest.approx(2.0)


def test_classes_that_a_plane_parts_are_told_apart_and_absent_ones_never_named():
    torch.manual_seed(0)
    features = torch.randn(300, 4)
    classes = torch.where(features[:, 0] > 0, 3, 1)  # 0 and 2 do not occur
    said = logistic_predictions(features[:200], classes[:200], features[200:])
    assert set(said.tolist()) == {1, 3}
    assert (said == classes[200:]).float().mean() > 0.95


def point(episode: int, number: int, *, action: int, states: torch.Tensor, loss: float = 1.0, tokens: int = 2):
    return DecisionPoint(
        episode=str(episode), num_frames=number, action=action, loss=loss, tokens=tokens, states=states
    )


def test_cross_entropy_is_per_token_of_each_episode():
    states = torch.zeros(1, 1)
    points = [
        point(0, 1, action=1, states=states, loss=3.0, tokens=2),
        point(0, 2, action=1, states=states, loss=1.0, tokens=2),
        point(1, 1, action=1, states=states, loss=0.5, tokens=1),
    ]
    assert cross_entropies(points) == {"0": 1.0, "1": 0.5}


def test_probes_are_tested_in_houses_on_which_they_were_not_fitted():
    torch.manual_seed(0)
    points, metres = [], []
    for episode in range(40):
        for number in range(5):
            knows = torch.randn(2)
            noise = torch.randn(2)
            points.append(point(episode, number, action=int(knows[0] > 0), states=torch.stack([noise, knows])))
            metres.append(4.0 + float(knows[1]))
    found = probe(points, metres, 0.6)
    blind, knowing = found["layers"]
    assert (found["decisions_fitted"], found["decisions_tested"]) == (120, 80)
    assert set(knowing["next_action"]) == {str(episode) for episode in range(24, 40)}
    assert knowing["accuracy"] > 0.9 and knowing["r2"] > 0.95
    assert blind["accuracy"] < 0.75 and blind["r2"] < 0.2
    assert knowing["mean_error_m"] < 0.2 < found["floors"]["mean_error_m_of_the_mean"]


def test_a_record_of_one_decision_names_its_episode_and_its_frames():
    record = {"video_id": "17-4", "q": "go", "a": "turn left 15 degrees", "frames": ["a", "b", "c"]}
    assert decisions_of(record) == [("17", 3, "turn left 15 degrees")]
