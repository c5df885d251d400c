"""A vision-language model of a few thousand weights with a tokenizer and a predictor, and a clip with a jump."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava.model.builder import build_model
from llava.navigation.prompt import NavilaFormat
from llava.utils.tokenizer import train_tokenizer

SIDE = 32
JUMP = 5
"""Frame before which the disc jumps."""
SETTINGS: dict[str, Any] = {
    "embedding_dim": None, "predictor_dim": 16, "num_heads": 2, "num_layers": 2, "target_pool": 1
}  # fmt: skip
TEXTS = [NavilaFormat().question("Walk to the red ball."), "Your task is: Go to the blue box.\n", "What moves? A disc."]


def make_tokenizer(folder: Path) -> Any:
    return train_tokenizer(TEXTS * 3, 400, folder)


def make_model(
    tokenizer: Any = None, *, positions: int = 512, prompt: Mapping[str, Any] | None = None, seed: int = 0
) -> Any:
    """32 px pictures of 16 patches and 4 tokens; weights loud enough for answers and states to depend on pictures."""
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = build_model(
        {
            "llm_cfg": {
                "model_type": "llama", "vocab_size": 400 if tokenizer is None else len(tokenizer), **size,
                "max_position_embeddings": positions,
            },
            "vision_tower_cfg": {"model_type": "siglip_vision_model", "image_size": SIDE, "patch_size": 8, **size},
            "mm_projector_cfg": "mlp_downsample",
            "version": "llama_3",
            "num_video_frames": 4,
            "navigation_prompt": prompt,
        },
        tokenizer=tokenizer,
    )  # fmt: skip
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


def learner(model: Any, *, tuned_tower: bool = False, copies: bool = False, **settings: Any) -> Any:
    """The model with a predictor; one that copies the current frame, or one of random weights."""
    model.set_trainable(language_model=True, vision_tower=tuned_tower, mm_projector=True)
    module = model.initialize_continuous_autoregressive_modules({**SETTINGS, **settings})
    if not copies:
        torch.manual_seed(3)
        torch.nn.init.normal_(module.predictor.output_projection.weight, std=0.3)
    return model.eval()


def jumping_disc(num_frames: int = 8, jump: int = JUMP) -> Tensor:
    """A disc that moves 1 px to the right per frame, and 12 px down between frames jump - 1 and jump; [T, 3, H, W]."""
    time = torch.arange(num_frames)
    x, y = 8 + time, torch.where(time < jump, 8, 20)
    grid = torch.arange(SIDE)
    away = (grid[None, None, :] - x[:, None, None]) ** 2 + (grid[None, :, None] - y[:, None, None]) ** 2
    return (255 * (away <= 36)).to(torch.uint8)[:, None].expand(-1, 3, -1, -1).contiguous()
