"""A model of a few thousand weights that splits pictures of 4 x 4 cells, a cache, masks, and loud answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava.model.builder import build_model
from llava.scene.token_cache import BackgroundTokenCache, CacheConfig
from llava.utils.tokenizer import train_tokenizer
from tests.numerics.models import tiny_config

SIDE, GRID, CELLS = 64, 8, 4
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 5}
WORDS = ["what moves in the hall", "the red ball is near the blue chair", "turn left and stop", "is the door open"]


def make_tokenizer(folder: Path) -> Any:
    return train_tokenizer(WORDS * 3, 300, folder)


def split_model(*, llm: str = "llama", tokenizer: Any = None, seed: int = 0, std: float = 0.3, **split: Any) -> Any:
    """64 px pictures, 8 x 8 patches, 16 tokens; weights so loud that answers depend on every patch."""
    config = tiny_config(llm, "siglip_vision_model", version="llama_3", num_video_frames=3)
    config["vision_tower_cfg"]["image_size"] = SIDE
    if tokenizer is not None:
        config["llm_cfg"]["vocab_size"] = len(tokenizer)
        config.pop("image_token_id")
    torch.manual_seed(seed)
    model = build_model(config, tokenizer=tokenizer)
    model.initialize_scene_split({"separators": tokenizer is not None, **split})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=std)
    return model.eval()


def prompt(model: Any, *words: int, pictures: int = 1) -> Tensor:
    """[1, S]: two words, the pictures, then the given words."""
    return torch.tensor([[5, 6, *[model.config.image_token_id] * pictures, *words]])


def objects(*cells: int, count: int = 1) -> Tensor:
    """bool [count, 8, 8]: the patches of some of the 4 x 4 cells."""
    mask = torch.zeros(CELLS * CELLS, dtype=torch.bool)
    mask[list(cells)] = True
    fine = mask.view(CELLS, CELLS).repeat_interleave(2, 0).repeat_interleave(2, 1)
    return fine[None].repeat(count, 1, 1)


def repainted(pixels: Tensor, *cells: int, seed: int = 9) -> Tensor:
    """The pictures [n, 3, 64, 64] with other pixels in some cells."""
    other = torch.randint(0, 256, pixels.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    where = objects(*cells)[0].repeat_interleave(8, 0).repeat_interleave(8, 1)
    return torch.where(where, other, pixels)


def make_cache(**fields: Any) -> BackgroundTokenCache:
    return BackgroundTokenCache(CacheConfig(**{"device_bytes": 2**24, **fields}))


def asked(model: Any, ids: Tensor, pixels: Tensor, cache: Any, **options: Any) -> Any:
    """A `SceneAnswer` with greedy tokens."""
    return model.generate(ids, pixels, background_cache=cache, return_provenance=True, **{**GREEDY, **options})


def provenances(answer: Any) -> list[str]:
    return [picture.background for picture in answer.report.pictures]
