"""An encoder that can see, before any question: tower and projector learn to name what each patch of a picture shows.

A language model behind a fresh encoder answers from the words alone for longer than a small experiment lasts. Who asks
questions about pictures starts from a pretrained encoder; this is one, of pictures of the training's rooms.

python -m playground.experiments.scene_split.sight vqa --out runs/sight --steps 400 --seed 0
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from rich.progress import track
from torch import Tensor, nn

from llava.model.configuration_llava import LlavaConfig
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_projector.builder import build_mm_projector
from llava.navigation.worlds.base import NUM_HEADINGS, CameraProfile
from llava.navigation.worlds.renderer import Frames, render
from llava.navigation.worlds.tables import COLOUR_NAMES
from llava.train.model_setup import EMBEDDED_MODELS
from playground.experiments.scene_split.drawing import (
    COLOURS,
    HOURS,
    PAINTS,
    PIECES,
    SHAPES,
    SIDE,
    draw_picture,
    furniture_mask,
)
from playground.experiments.scene_split.robot import Rooms
from playground.experiments.scene_split.vqa import scenes_of, shots

TOWER, PROJECTOR = "vision_tower", "mm_projector"
NOTHING = "nothing"
LEAST_SHARE = 0.05
"""Of a patch, that a thing must cover to be named."""
NOTHING_WEIGHT = 0.1
"""Of the patches of wall and floor in the loss: three in four are."""
WARM_UP, LEARNING_RATE, BATCH = 20, 2e-3, 32
MERGE = 2
"""Patches per side of a token."""
PER_ROOM, HELD_OUT_ROOMS = 3, 60

Thing = tuple[str, Bool[np.ndarray, "h w"]]
"""Name and mask; what stands before something comes later."""
View = tuple[UInt8[np.ndarray, "h w 3"], list[Thing]]


def views_of_questions(unseen: bool, count: int, seed: int) -> Iterator[View]:
    """What the still cameras of `count` rooms see: furniture, clock, objects."""
    split = "scenes" if unseen else "train"
    for scene in scenes_of(split, count, seed):
        for shot in shots(scene, PER_ROOM, split=split, seed=seed):
            picture, masks, _ = draw_picture(scene, shot.hour, shot.things)
            names = [f"clock {shot.hour % HOURS}", *(f"{thing.colour} {thing.shape}" for thing in shot.things)]
            furniture = (f"{scene.piece_paint} {scene.piece}", furniture_mask(scene))
            yield picture, [furniture, *zip(names, masks, strict=True)]


def views_of_robots(unseen: bool, count: int, seed: int) -> Iterator[View]:
    """What the corner cameras of `count` rooms see: landmarks and the robot."""
    for place in range(PER_ROOM):
        rooms = Rooms.of("unseen" if unseen else "train", count, draw=seed + place)
        frames = rooms.render(SIDE)
        yield from (_colours(frames, rooms, row, ["robot"]) for row in range(count))


def views_of_walks(unseen: bool, count: int, seed: int) -> Iterator[View]:
    """What a walker sees at a random place of each of `count` houses, looking anywhere."""
    heading, camera = np.random.default_rng(seed), CameraProfile(width=SIDE, height=SIDE)
    for place in range(PER_ROOM):
        rooms = Rooms.of("unseen" if unseen else "train", count, draw=seed + place)
        looks = heading.integers(NUM_HEADINGS, size=count)
        frames = render(rooms.houses, np.arange(count), rooms.x, rooms.z, looks, camera)
        yield from (_colours(frames, rooms, row, []) for row in range(count))


def _colours(frames: Frames, rooms: Rooms, row: int, others: list[str]) -> View:
    """The colours of landmarks are their names: shapes are a few pixels far off, and a room has each colour once."""
    ids, number = frames.instance_ids[row], rooms.houses.num_objects[row]
    names = [*(COLOUR_NAMES[colour] for colour in rooms.houses.colour[row, :number]), *others]
    return frames.rgb[row], [(name, ids == i + 1) for i, name in enumerate(names)]


@dataclass(frozen=True, kw_only=True)
class Sights:
    """What can be seen in the pictures of a task.

    Attributes:
        names: of everything, the first of what is nothing.
        views: (unseen rooms or those of the training, how many, seed) -> pictures with their things.
    """

    names: tuple[str, ...]
    views: Callable[[bool, int, int], Iterator[View]]


SIGHTS = {
    "vqa": Sights(
        names=(
            NOTHING,
            *(f"clock {hour}" for hour in range(HOURS)),
            *(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS),
            *(f"{paint} {piece}" for piece in PIECES for paint in PAINTS),
        ),
        views=views_of_questions,
    ),
    "robot": Sights(
        names=(NOTHING, "robot", *COLOUR_NAMES),
        views=views_of_robots,
    ),
    "walk": Sights(names=(NOTHING, *COLOUR_NAMES), views=views_of_walks),
}


@dataclass(frozen=True, kw_only=True)
class Named:
    """Pictures, and the numbers of what the patches of each token show.

    Attributes:
        pictures: uint8 [n, 3, SIDE, SIDE].
        names: int64 [n, tokens, patches of a token].
    """

    pictures: UInt8[Tensor, "n c h w"]
    names: Int[Tensor, "n t p"]

    def __getitem__(self, rows: Tensor) -> Named:
        return Named(pictures=self.pictures[rows], names=self.names[rows])

    def __len__(self) -> int:
        return len(self.pictures)


def names_of(things: Sequence[Thing], names: Sequence[str], patch: int) -> Int[np.ndarray, "rows columns"]:
    """Number in `names` of what each patch shows; patch: side in pixels."""
    side = SIDE // patch
    found = np.zeros((side, side), np.int64)
    for name, mask in things:
        share = mask.reshape(side, patch, side, patch).mean(axis=(1, 3))
        found[share > LEAST_SHARE] = names.index(name)
    return found


def collect(sights: Sights, patch: int, *, unseen: bool, rooms: int, seed: int = 0) -> Named:
    pictures, grids = [], []
    for picture, things in sights.views(unseen, rooms, seed):
        pictures.append(picture.transpose(2, 0, 1))
        grids.append(names_of(things, sights.names, patch))
    side = SIDE // patch // MERGE
    apart = np.stack(grids).reshape(-1, side, MERGE, side, MERGE).transpose(0, 1, 3, 2, 4)
    names = torch.from_numpy(apart.reshape(-1, side**2, MERGE**2).copy())
    return Named(pictures=torch.from_numpy(np.stack(pictures)), names=names)


class Namer(nn.Module):
    """Tower, projector, and a linear layer that names the patches of each token."""

    def __init__(self, size: str, num_names: int) -> None:
        super().__init__()
        embedded = EMBEDDED_MODELS[size]
        parts = embedded.config_parts(vocab_size=8, context=8, ids={})
        width = parts["llm_cfg"]["hidden_size"]
        self.tower = build_vision_tower({**parts["vision_tower_cfg"], "image_size": SIDE}, LlavaConfig())
        self.projector = build_mm_projector(parts["mm_projector_cfg"], self.tower.hidden_size, width)
        self.patch = embedded.patch_size
        self.head = nn.Linear(width, MERGE**2 * num_names)

    def forward(self, pictures: UInt8[Tensor, "n c h w"]) -> Tensor:
        tokens = self.projector(self.tower(self.tower.normalise(pictures)))  # [n, t, D]
        return self.head(tokens).unflatten(-1, (MERGE**2, -1))  # [n, t, p, names]

    def save(self, folder: Path) -> None:
        self.tower.vision_tower.save_pretrained(folder / TOWER)
        self.projector.save_pretrained(folder / PROJECTOR)


def train(namer: Namer, data: Named, *, num_names: int, steps: int, draw_rows: torch.Generator) -> None:
    trained = [weight for weight in namer.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    weight = torch.ones(num_names)
    weight[0] = NOTHING_WEIGHT
    for _ in track(range(steps), description="Naming patches"):
        batch = data[torch.randint(len(data), (BATCH,), generator=draw_rows)]
        loss = nn.functional.cross_entropy(namer(batch.pictures).flatten(0, 2), batch.names.flatten(), weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()


@torch.no_grad()
def share_right(namer: Namer, data: Named) -> float:
    """Of the patches that show something."""
    right = namer(data.pictures).argmax(-1) == data.names
    return float(right[data.names > 0].float().mean())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("task", choices=SIGHTS)
    add("--out", type=Path, required=True, help=f"gets {TOWER}/ and {PROJECTOR}/, for the flags of these names")
    add("--embedded-size", choices=list(EMBEDDED_MODELS), default="tiny")
    add("--rooms", type=int, default=1000)
    add("--steps", type=int, default=400)
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    sights, count = SIGHTS[options.task], len(SIGHTS[options.task].names)
    torch.manual_seed(options.seed)
    namer = Namer(options.embedded_size, count)
    seen = collect(sights, namer.patch, unseen=False, rooms=options.rooms)
    rows = torch.Generator().manual_seed(options.seed)
    train(namer, seen, num_names=count, steps=options.steps, draw_rows=rows)
    right = share_right(namer, collect(sights, namer.patch, unseen=True, rooms=HELD_OUT_ROOMS))
    namer.save(options.out)
    print(f"patches of unseen rooms named right: {100 * right:.0f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
