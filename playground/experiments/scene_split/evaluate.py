"""Answers of one model to the questions of unseen pictures, in one or more ways.

python -m playground.experiments.scene_split.evaluate --full DIR --split DIR --data DIR --out FILE.json \
    --ways full split exact guarded --noise 0 2 8 --disturbances none jpeg_85

Pictures come in the order of time, all cameras side by side: each camera shows its next picture and is asked about it.
A cache starts empty in every way and serves all cameras.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llava.eval.results import write_json
from llava.utils import io
from playground.experiments.scene_split.answers import Answerer, Prompt, Reply
from playground.experiments.scene_split.disturb import DISTURBANCES, Disturbance
from playground.experiments.scene_split.pictures import read_masks, read_picture
from playground.experiments.scene_split.ways import WAYS, Way, make_answerer

Asked = tuple[str, Mapping[str, Any], Prompt]
"""(scene, question, what the model is shown)"""


class Shown:
    """The pictures of a split with their masks, disturbed the same in every way."""

    def __init__(self, root: Path, split: str, disturbance: Disturbance) -> None:
        self.root, self.split, self.disturbance = root, split, disturbance
        self.records = io.load(root / f"{split}.json")
        self.masks = read_masks(root)

    def moments(self, *, all_questions: bool) -> Iterator[list[Asked]]:
        """What is asked at the same time, one question per camera.

        Args:
            all_questions: False asks one of a picture's, in turns.
        """
        for number in sorted({record["number"] for record in self.records}):
            now = [record for record in self.records if record["number"] == number]
            shown = [self._prompt(record) for record in now]
            count = len(now[0]["questions"])
            for turn in range(count) if all_questions else [number % count]:
                yield [
                    (record["scene"], question := record["questions"][(turn + place) % count],
                     Prompt(text=f"<image>\n{question['text']}", pictures=[picture], masks=[mask],
                            camera=record["scene"], drawn=number))
                    for place, (record, (picture, mask)) in enumerate(zip(now, shown, strict=True))
                ]  # fmt: skip

    def _prompt(self, record: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng([int(record["scene"]), record["number"]])
        return self.disturbance.apply(read_picture(self.root / record["image"]), self.masks[record["image"]], draw)


def ask(answerer: Answerer, shown: Shown, *, all_questions: bool) -> dict[str, Any]:
    """Every answer by question, and what the cache did: in all, and at the first question about each picture."""
    rights: dict[str, float] = {}
    replies: list[Reply] = []
    first: list[Reply] = []
    kinds: dict[str, list[float]] = {}
    seen: set[str] = set()
    for number, moment in enumerate(shown.moments(all_questions=all_questions)):
        found = answerer.answer([prompt for _, _, prompt in moment])
        for (scene, question, _), reply in zip(moment, found, strict=True):
            right = float(reply.text == question["answer"])
            rights[f"{scene}/{number}/{question['kind']}"] = right
            kinds.setdefault(question["kind"], []).append(right)
        names = [f"{prompt.camera}/{prompt.drawn}" for _, _, prompt in moment]
        first += [reply for name, reply in zip(names, found, strict=True) if name not in seen]
        seen |= set(names)
        replies += found
    return {
        "rights": rights,
        "kinds": {kind: sum(values) / len(values) for kind, values in kinds.items()},
        **use_of(replies),
        "first_question": use_of(first),
    }


def use_of(replies: Sequence[Reply]) -> dict[str, Any]:
    """Tokens that were computed, backgrounds that were reused, and what the cache said how often."""
    background = sum(reply.background for reply in replies)
    return {
        "computed_share": sum(reply.computed for reply in replies) / max(1, sum(reply.total for reply in replies)),
        "reused_share": sum(reply.reused for reply in replies) / max(1, background),
        "provenance": dict(Counter(word for reply in replies for word in reply.provenance)),
    }


def evaluate(models: Mapping[str, Any], way: Way, shown: Shown, noise: float | None, *, every: bool) -> dict[str, Any]:
    answerer = make_answerer(models[way.training], way, noise=noise)
    return {
        "way": way.name, "noise": noise, "disturbance": shown.disturbance.name, "split": shown.split,
        **ask(answerer, shown, all_questions=every),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    import llava

    options = build_parser().parse_args(arguments)
    ways = [WAYS[name] for name in options.ways]
    models = {name: llava.load(getattr(options, name)) for name in dict.fromkeys(way.training for way in ways)}
    rows = []
    for name in options.disturbances:
        shown = Shown(options.data, options.test, DISTURBANCES[name])
        for way in ways:
            for noise in options.noise if way.cache == "guarded" else [None]:
                rows.append(evaluate(models, way, shown, noise, every=not options.one_question))
                share = sum(rows[-1]["rights"].values()) / len(rows[-1]["rights"])
                said = f"{name}, {way.name}" + ("" if noise is None else f" at {noise:g}")
                print(f"{said}: {100 * share:.1f} % right, {100 * rows[-1]['reused_share']:.0f} % reused", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, {"rows": rows})
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--full", type=Path, help="model of the ways that need one without a split")
    add("--split", type=Path, help="model that was trained with the split")
    add("--data", type=Path, required=True, help="folder of make_data vqa")
    add("--test", default="scenes", choices=("scenes", "arrangements"))
    add("--ways", nargs="+", required=True, metavar="WAY", help=", ".join(WAYS))
    add("--noise", type=float, nargs="+", default=[2.0], help="grey levels that a guarded cache allows")
    add("--disturbances", nargs="+", default=["none"], metavar="NAME", help=", ".join(DISTURBANCES))
    add("--one-question", action="store_true", help="ask one question per picture, in turns, not all")
    add("--out", type=Path, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
