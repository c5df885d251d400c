"""Held-out cross-entropy and linear probes of one trained model.

python -m playground.experiments.reconstruction.measure --model DIR --format streaming --data-root DIR --episodes 120 \
    --fit 0.6 --out FILE.json
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llava.eval.results import write_json
from playground.experiments.reconstruction.heldout import MIXTURES, DecisionPoint, distances_to_goal, read_decisions
from playground.experiments.reconstruction.probes import logistic_predictions, ridge_predictions


def cross_entropies(points: Sequence[DecisionPoint]) -> dict[str, float]:
    """Nats per supervised token of every episode."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for point in points:
        sums[point.episode][0] += point.loss
        sums[point.episode][1] += point.tokens
    return {episode: loss / tokens for episode, (loss, tokens) in sums.items()}


def probe(points: Sequence[DecisionPoint], metres: Sequence[float], fit: float) -> dict[str, Any]:
    """Per layer: how well action and distance are read off in houses on which the probe was not fitted.

    Args:
        metres: to the goal, for every point.
        fit: share of the houses, first ones first, on which the probes are fitted.
    """
    houses = sorted({point.episode for point in points}, key=int)
    fitted = set(houses[: max(1, min(len(houses) - 1, round(fit * len(houses))))])
    is_fit = torch.tensor([point.episode in fitted for point in points])
    states = torch.stack([point.states for point in points])  # [n, layers, D]
    action = torch.tensor([point.action for point in points])
    distance = torch.tensor(metres, dtype=torch.float64)
    tested = [point.episode for point in points if point.episode not in fitted]
    majority = action[is_fit].mode().values
    spread = float(((distance[~is_fit] - distance[is_fit].mean()) ** 2).mean())
    layers = []
    for layer in states.unbind(1):
        said = logistic_predictions(layer[is_fit], action[is_fit], layer[~is_fit])
        guess = ridge_predictions(layer[is_fit], distance[is_fit], layer[~is_fit])
        right = (said == action[~is_fit]).double()
        error = (guess - distance[~is_fit]).abs()
        layers.append(
            {
                "next_action": _by_episode(tested, right.tolist()),
                "distance_error_m": _by_episode(tested, error.tolist()),
                "accuracy": float(right.mean()),
                "r2": 1 - float((error**2).mean()) / spread,
                "mean_error_m": float(error.mean()),
            }
        )
    floors = {
        "accuracy_of_the_commonest_action": float((action[~is_fit] == majority).double().mean()),
        "mean_error_m_of_the_mean": float((distance[~is_fit] - distance[is_fit].mean()).abs().mean()),
    }
    return {"decisions_fitted": int(is_fit.sum()), "decisions_tested": len(tested), "floors": floors, "layers": layers}


def _by_episode(episodes: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    sums: dict[str, list[float]] = defaultdict(list)
    for episode, value in zip(episodes, values, strict=True):
        sums[episode].append(value)
    return {episode: sum(found) / len(found) for episode, found in sums.items()}


def measure(model_path: Path, form: str, data_root: Path, *, episodes: int, fit: float) -> dict[str, Any]:
    """All that is measured without walking."""
    import llava

    model: Any = llava.load(model_path)
    points: list[DecisionPoint] = []
    seen: set[str] = set()
    for point in read_decisions(model, form, data_root, episodes):
        if point.episode not in seen:
            seen.add(point.episode)
            if len(seen) % 20 == 0:
                print(f"{len(seen)}/{episodes} episodes", flush=True)
        points.append(point)
    known = distances_to_goal(data_root, episodes)
    metres = [known[point.episode, point.num_frames] for point in points]
    entropies = cross_entropies(points)
    return {
        "format": form,
        "episodes": len(entropies),
        "decisions": len(points),
        "cross_entropy": entropies,
        "probes": probe(points, metres, fit),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--format", choices=tuple(MIXTURES), required=True)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--episodes", type=int, required=True, help="unseen houses, the first ones")
    parser.add_argument("--fit", type=float, default=0.6, help="share of them on which the probes are fitted")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        found = measure(options.model, options.format, options.data_root, episodes=options.episodes, fit=options.fit)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    write_json(options.out, found)
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
