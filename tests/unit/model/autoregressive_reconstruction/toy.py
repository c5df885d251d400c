"""Small towers and toy videos whose next frame is known, half known or unknown by construction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import SiglipVisionConfig

from llava.model.autoregressive_reconstruction import (
    AutoregressiveReconstructionModule,
    SkillSums,
    create_autoregressive_reconstruction_module,
)
from llava.model.multimodal_encoder.siglip_encoder import SiglipVisionTower

SIDE, PATCH, WIDTH = 32, 8, 32
NUM_PATCHES = (SIDE // PATCH) ** 2
HIDDEN = 48
SMALL: dict[str, Any] = {"embedding_dim": None, "num_heads": 4, "target_pool": 1}


def make_tower(*, is_frozen: bool = True, seed: int = 0, side: int = SIDE) -> SiglipVisionTower:
    """Random weights, 32 x 32 pixels, 16 patches of width 32."""
    torch.manual_seed(seed)
    config = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=side,
        patch_size=PATCH,
        vision_use_head=False,
    )
    tower = SiglipVisionTower(SiglipVisionTower.model_class._from_config(config, attn_implementation="sdpa"))
    return tower.requires_grad_(not is_frozen)


def make_module(tower: Any = None, hidden_size: int = HIDDEN, **config: Any) -> AutoregressiveReconstructionModule:
    tower = make_tower() if tower is None else tower
    torch.manual_seed(1)
    return create_autoregressive_reconstruction_module(tower, hidden_size, {**SMALL, **config})


def awake(module: AutoregressiveReconstructionModule) -> AutoregressiveReconstructionModule:
    """Heads that start at zero hide every path behind them; this gives them weights."""
    torch.manual_seed(2)
    for head in (module.predictor.output_projection, module.predictor.geometry_projection):
        if head is not None:
            torch.nn.init.normal_(head.weight, std=0.2)
    return module


def noise_clips(num_clips: int, num_frames: int, generator: torch.Generator) -> Tensor:
    """Pictures that have nothing to do with each other; uint8 [V, T, 3, H, W]."""
    return torch.randint(0, 256, (num_clips, num_frames, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)


def colour_clips(num_clips: int, num_frames: int, generator: torch.Generator) -> Tensor:
    """Each frame of one colour, drawn anew: as unpredictable as noise, and quicker to copy for whoever sees it."""
    colour = torch.randint(0, 256, (num_clips, num_frames, 3, 1, 1), dtype=torch.uint8, generator=generator)
    return colour.expand(-1, -1, -1, SIDE, SIDE)


def moving_clips(num_clips: int, num_frames: int, generator: torch.Generator) -> Tensor:
    """A disc that crosses the picture by half a patch per frame, in one of four directions; uint8 [V, T, 3, H, W].

    The second frame tells the direction; all that follows could be known.
    """
    directions = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]]) * (PATCH // 2)
    speed = directions[torch.randint(0, 4, (num_clips,), generator=generator)][:, None]
    start = torch.randint(0, 2 * SIDE // PATCH, (num_clips, 1, 2), generator=generator) * (PATCH // 2)
    centre = (start + speed * torch.arange(num_frames)[None, :, None]) % SIDE  # [V, T, 2]
    away = (torch.arange(SIDE) - centre[..., None] + SIDE / 2) % SIDE - SIDE / 2  # [V, T, 2, SIDE], around the edge
    disc = torch.sigmoid(2 * (PATCH - (away[:, :, 0, :, None] ** 2 + away[:, :, 1, None, :] ** 2).sqrt()))
    colour = torch.tensor([1.0, 0.6, 0.2])[:, None, None]
    return (disc[:, :, None] * colour * 255).to(torch.uint8)


def turning_clips(num_clips: int, num_frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A view into a round of coloured columns that turns left or right by chance at each frame, a quarter of its width.

    Returns:
        (uint8 [V, T, 3, H, W], motions [V, T, 3] with the yaw of each turn in degrees).
    """
    turns = torch.randint(0, 2, (num_clips, num_frames), generator=generator) * 2 - 1  # +1 = left
    heading = torch.cat([torch.zeros(num_clips, 1, dtype=torch.long), turns.cumsum(1)[:, :-1]], dim=1) * (SIDE // 4)
    panorama = torch.rand(num_clips, 3, 1, 16, generator=generator).repeat_interleave(
        SIDE // 4, dim=3
    )  # [V, 3, 1, 4*SIDE]
    columns = (torch.arange(SIDE)[None, None] - heading[..., None]) % panorama.shape[3]  # [V, T, SIDE]
    strips = panorama[:, None].expand(-1, num_frames, -1, -1, -1)
    index = columns[:, :, None, None].expand(-1, -1, 3, 1, -1)
    frames = strips.gather(4, index).expand(-1, -1, -1, SIDE, -1)
    motions = torch.stack([torch.zeros_like(turns), 15 * turns, torch.ones_like(turns)], dim=-1).float()
    return (frames * 255).to(torch.uint8), motions


@torch.no_grad()
def features_of(module: AutoregressiveReconstructionModule, clips: Tensor) -> Tensor:
    """Once for a whole training, as a frozen tower allows."""
    return module.teacher(clips)


def train(
    module: AutoregressiveReconstructionModule,
    clips: Tensor,
    steps: int,
    *,
    learning_rate: float = 5e-3,
    batch_size: int = 8,
    motions: Tensor | None = None,
) -> None:
    features, generator = features_of(module, clips), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        chosen = torch.randint(0, len(clips), (batch_size,), generator=generator)
        told = {} if motions is None else {"motions": motions[chosen]}
        optimizer.zero_grad()
        module(None, frame_features=features[chosen], **told).loss().backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def judge(module: AutoregressiveReconstructionModule, clips: Tensor, **told: Any) -> dict[str, float]:
    skill: SkillSums = module(None, clips, **told).skill
    return skill.read()
