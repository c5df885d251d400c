"""A model of a few thousand parameters and toy data sets, for the tests of training."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from llava.batch import Sample
from llava.constants import IGNORE_INDEX
from llava.data.clips import make_clip
from llava.model.builder import build_model

IMAGE_TOKEN = 31
VOCABULARY = 32


def toy_model(seed: int = 0, width: int = 16):
    """Llama of width 16 behind an 8 px tower; one picture takes 4 tokens."""
    torch.manual_seed(seed)
    return build_model(
        {
            "llm_cfg": {
                "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": width, "intermediate_size": 2 * width,
                "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 256,
            },
            "vision_tower_cfg": {
                "model_type": "siglip_stem", "image_size": 16, "patch_size": 4, "stem_strides": [2, 2], "stem_width": 4,
                "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            },
            "mm_projector_cfg": "mlp_downsample",
            "image_token_id": IMAGE_TOKEN,
        }
    )  # fmt: skip


class ToyData(Dataset[Sample]):
    """Sample i: one random picture (4 slots), then 4 to 12 random tokens of which the second half is trained."""

    def __init__(self, size: int, image_token: int = IMAGE_TOKEN) -> None:
        self.size, self.image_token = size, image_token
        self.lengths = [len(self[i]["input_ids"]) for i in range(size)]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.size:
            raise IndexError(index)
        random = torch.Generator().manual_seed(index)
        text = torch.randint(0, IMAGE_TOKEN, (4 + index % 9,), generator=random)
        ids = torch.cat([torch.full((4,), self.image_token), text])
        labels = torch.cat([torch.full((4,), IGNORE_INDEX), text])
        labels[: 4 + len(text) // 2] = IGNORE_INDEX
        picture = torch.randint(0, 256, (1, 3, 16, 16), generator=random, dtype=torch.uint8)
        return Sample(input_ids=ids, labels=labels, images=picture, sample_id=str(index))


class ToyClips(Dataset[Sample]):
    """Sample i: 2 to 4 random pictures (4 slots each), each followed by two tokens of which the second is trained.

    Between its pictures a robot goes 0.25 m ahead, then turns by 15 degrees, in turns. Every `blank`-th sample has one
    picture and no clip.
    """

    def __init__(self, size: int, *, blank: int = 0, image_token: int = IMAGE_TOKEN) -> None:
        self.size, self.blank, self.image_token = size, blank, image_token
        self.lengths = [len(self[i]["input_ids"]) for i in range(size)]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.size:
            raise IndexError(index)
        random = torch.Generator().manual_seed(index)
        count = 1 if self.blank and index % self.blank == 0 else 2 + index % 3
        text = torch.randint(0, IMAGE_TOKEN, (count, 2), generator=random)
        ids = torch.cat([torch.full((count, 4), self.image_token), text], dim=1)  # [count, 6]
        labels = torch.full_like(ids, IGNORE_INDEX)
        labels[:, 5] = ids[:, 5]
        sample = Sample(
            input_ids=ids.flatten(),
            labels=labels.flatten(),
            frame_ids=torch.arange(count).repeat_interleave(6),
            images=torch.randint(0, 256, (count, 3, 16, 16), generator=random, dtype=torch.uint8),
            sample_id=f"clip {index}",
        )
        motions = torch.tensor([[0.25, 0.0, 1.0], [0.0, 15.0, 1.0]]).repeat(2, 1)[:count]
        motions[-1] = torch.nan
        clip = make_clip(
            range(count),
            [float(t) for t in range(count)],
            motions=motions,
            answer_ends={t: 6 * t + 5 for t in range(count - 1)},
        )
        if clip is not None:
            sample["clip"] = clip
        return sample
