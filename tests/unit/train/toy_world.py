"""A tiny NaVILA folder: the colour of a picture tells the answer, so that a few steps already learn something."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import cv2
import numpy as np

ANSWERS = (
    "The next action is move forward 75 cm.",
    "The next action is turn left 15 degree.",
    "The next action is turn right 30 degree.",
    "I think I should stop because I have finished the instruction.",
)


def write_toy_world(root: Path, *, num_episodes: int = 12, size: int = 16) -> Path:
    """Episodes of four decisions with one frame each, for all embedded data sets, and one question per frame."""
    records, grounding = [], []
    for episode in range(num_episodes):
        folder = root / "train" / str(episode)
        folder.mkdir(parents=True)
        for step, answer in enumerate(ANSWERS):
            picture = np.zeros((size, size, 3), np.uint8)
            picture[..., step % 3] = 60 * (step + 1)
            cv2.imwrite(str(folder / f"frame_{step}.jpg"), picture)
            frames = [f"{episode}/frame_{i}.jpg" for i in range(step + 1)]
            task = f"Walk to the {('red', 'blue', 'green')[episode % 3]} ball and stop."
            records.append({"video_id": f"{episode}-{step}", "q": task, "a": answer, "frames": frames})
            grounding.append(_question(f"{episode}-{step}", frames[-1], step))
    (root / "annotations.json").write_text(json.dumps(records))
    (root / "grounding.json").write_text(json.dumps(grounding))
    seen = {str(e): [{"red ball": [step, 2], "blue box": None} for step in range(4)] for e in range(num_episodes)}
    (root / "episode_grounding.json.gz").write_bytes(gzip.compress(json.dumps(seen).encode()))
    return root


def _question(name: str, frame: str, step: int) -> dict:
    turns = [
        {"from": "human", "value": "<image>\nWhich colour is it?"},
        {"from": "gpt", "value": ("blue", "green", "red", "white")[step]},
    ]
    return {"id": name, "image": f"train/{frame}", "conversations": turns}
