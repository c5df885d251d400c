"""Writes the pictures, masks and records of one task of the experiment from seeds.

python -m playground.experiments.scene_split.make_data vqa --out runs/data --train 1000 --test 40 --per-scene 8
python -m playground.experiments.scene_split.make_data robot --out runs/data --train 2000 --per-scene 4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llava.eval.results import write_json
from playground.experiments.scene_split.drawing import SIDE, Scene, draw_picture
from playground.experiments.scene_split.pictures import PictureFolder, write_records
from playground.experiments.scene_split.robot import INSTRUCTION, Rooms, near_goal, random_goals
from playground.experiments.scene_split.vqa import blind_floor, scenes_of, shots

FLOOR_FILE = "blind_floor.json"
TRAIN_FILE = "train.json"
STOP_EVERY = 5
"""One picture in so many stands at its goal: five answers, each a fifth."""


def write_vqa(root: Path, *, train: int, test: int, per_scene: int, seed: int = 0) -> dict[str, float]:
    """Training records, one per question; test records of both splits, one per picture with its questions.

    Args:
        train, test: scenes; per_scene: pictures of each.

    Returns:
        The blind floor of unseen scenes, by kind of question.
    """
    counts = {"train": train, "arrangements": min(train, test), "scenes": test}
    records: dict[str, list[dict[str, Any]]] = {}
    with PictureFolder(root) as folder:
        for split, count in counts.items():
            scenes = scenes_of(split, count, seed)
            records[split] = [r for scene in scenes for r in _scene(folder, scene, split, per_scene, seed)]
    write_records(root / TRAIN_FILE, [each for record in records["train"] for each in _asked_apart(record)])
    for split in ("arrangements", "scenes"):
        write_records(root / f"{split}.json", records[split])
    asked = {split: [q for r in rows for q in r["questions"]] for split, rows in records.items()}
    floor = blind_floor(asked["train"], asked["scenes"])
    write_json(root / FLOOR_FILE, floor)
    return floor


def _scene(folder: PictureFolder, scene: Scene, split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    for number, shot in enumerate(shots(scene, count, split=split, seed=seed)):
        name = f"{split}/{scene.seed}/{number:02d}.png"
        folder.add(name, *draw_picture(scene, shot.hour, shot.things))
        questions = [{"kind": q.kind, "text": q.text, "answer": q.answer} for q in shot.questions()]
        yield {"id": name, "image": name, "scene": str(scene.seed), "number": number, "questions": questions}


def _asked_apart(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One question per record: in dialogues of five, a small model starts later to look at the picture."""
    for question in record["questions"]:
        name = record["image"]
        yield _dialogue(f"{name} {question['kind']}", name, question["text"], question["answer"])


def write_robot(root: Path, *, train: int, per_scene: int) -> int:
    """Training records of the corner camera, `per_scene` places of the robot and goals in each room; how many."""
    records = []
    with PictureFolder(root) as folder:
        for draw in range(per_scene):
            rooms = Rooms.of("train", train, draw=draw)
            rooms = rooms.marked(random_goals(rooms, draw))
            close = near_goal(rooms, draw)
            there = np.arange(train) % STOP_EVERY == draw % STOP_EVERY
            rooms = Rooms(houses=rooms.houses, x=np.where(there, close.x, rooms.x), z=np.where(there, close.z, rooms.z))
            frames, moves = rooms.render(SIDE), rooms.expert()
            for row in range(train):
                name = f"train/{row}/{draw:02d}.png"
                numbers = np.arange(1, int(rooms.houses.num_objects[row]) + 2)
                masks = frames.instance_ids[row] == numbers[:, None, None]
                folder.add(name, frames.rgb[row], masks, rooms.names(row))
                said = rooms.answer(row, moves[row], frames.instance_ids[row])
                records.append(_dialogue(name, name, INSTRUCTION, said))
    write_records(root / TRAIN_FILE, records)
    return len(records)


def _dialogue(name: str, picture: str, question: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": picture, "conversations": turns}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("task", choices=("vqa", "robot"))
    add("--out", type=Path, required=True, help="a folder of this task is made in it")
    add("--train", type=int, required=True, help="scenes or rooms of the training")
    add("--test", type=int, default=0, help="scenes of each test split (vqa)")
    add("--per-scene", type=int, default=8, help="pictures of each")
    options = parser.parse_args(arguments)
    root = options.out / options.task
    if options.task == "vqa":
        floor = write_vqa(root, train=options.train, test=options.test, per_scene=options.per_scene)
        print("blind floor:", ", ".join(f"{kind} {100 * share:.1f} %" for kind, share in floor.items()))
    else:
        print(write_robot(root, train=options.train, per_scene=options.per_scene), "records")
    return 0


if __name__ == "__main__":
    sys.exit(main())
