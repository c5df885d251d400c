"""What policies need of a vision-language model: features of pictures, embeddings of words, words of answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from llava.conversation import get_template
from llava.mm_utils import to_uint8_tensor
from llava.utils.tokenizer import TokenizationCompat, tokenize_conversation

VISION_BATCH = 256
"""Pictures that go through the tower at once."""


class ModelSide:
    """A loaded model in evaluation mode, with its tokenizer.

    Args:
        conv_mode: conversation template instead of the one that the checkpoint stores.

    Raises:
        ValueError: the model has no tokenizer.
    """

    def __init__(self, model: Any, *, conv_mode: str | None = None) -> None:
        if model.tokenizer is None:
            raise ValueError("the model has no tokenizer; load it with llava.load(path) or set model.tokenizer")
        self.model = model.eval()
        self.tokenizer = model.tokenizer
        self.spec = model.visual_spec
        self.device = model.device
        self.image_token_id = model.config.image_token_id
        self.conv_mode = conv_mode or model.config.version or "auto"

    @torch.no_grad()
    def picture_features(self, frames: Sequence[np.ndarray]) -> Float[Tensor, "n k d"]:
        """uint8 [H, W, 3] pictures of any size -> projected tokens."""
        pixels = torch.stack([to_uint8_tensor(frame, self.spec) for frame in frames])
        return torch.cat([self.model.encode_images(part.to(self.device)) for part in pixels.split(VISION_BATCH)])

    @torch.no_grad()
    def embed(self, ids: Int[Tensor, " s"]) -> Float[Tensor, "s d"]:
        """Text embeddings; rows of the picture token are zeros, to be overwritten."""
        ids = ids.to(self.device)
        is_picture = ids == self.image_token_id
        return self.model.get_input_embeddings()(ids.masked_fill(is_picture, 0)) * ~is_picture[:, None]

    def question_ids(self, question: str) -> Int[Tensor, " s"]:
        """A whole prompt in the conversation template, up to where the answer begins; `<image>` takes all its slots."""
        ids = tokenize_conversation(
            [{"from": "human", "value": question}],
            self.tokenizer,
            get_template(self.conv_mode),
            add_generation_prompt=True,
            compat=TokenizationCompat.from_config(self.model.config.tokenization_compat),
            image_token_id=self.image_token_id,
        )
        flat = torch.tensor(ids)
        repeats = torch.where(flat == self.image_token_id, self.spec.tokens_per_image, 1)
        return flat.repeat_interleave(repeats)

    def word_ids(self, text: str) -> list[int]:
        """Ids of a stretch of text within a sequence."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return frozenset(self.model.stop_token_ids() or ())

    def longest_sequence(self) -> int:
        """Positions that the language model was made for."""
        return int(getattr(self.model.llm.config, "max_position_embeddings", 1 << 30))
