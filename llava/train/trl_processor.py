"""Messages and pictures for the trainers of trl, laid out as the model's own training lays them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from llava.batch import VisualSpec
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import get_template
from llava.mm_utils import expand_image_tokens, load_image, to_uint8_tensor
from llava.utils.tokenizer import TokenizationCompat, tokenize_text

BLACK = ""
"""In place of a path: a black picture, with which a short history begins."""


class PictureProcessor(BaseImageProcessor):
    """Pictures and paths to uint8 of the tower's size; the model normalises them."""

    model_input_names = ["pixel_values"]  # noqa: RUF012  (as transformers declares it)

    def __init__(self, spec: VisualSpec) -> None:
        super().__init__()
        self.spec = spec

    def to_dict(self) -> dict[str, Any]:
        """What can be written as JSON."""
        return {"image_processor_type": type(self).__name__, "image_size": self.spec.image_size}

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:  # pyright: ignore[reportIncompatibleMethodOverride]
        pictures = [to_uint8_tensor(_opened(picture, self.spec), self.spec) for picture in flat(images)]
        return BatchFeature({"pixel_values": torch.stack(pictures)} if pictures else {})


class PolicyProcessor(ProcessorMixin):
    """The model's template, tokenizer and picture size behind the calls that trl makes.

    Args:
        image_processor: see `PictureProcessor`.
        tokenizer: the model's.
        config: the model's, which names the template and how texts were cut in its training.
    """

    def __init__(self, image_processor: PictureProcessor, tokenizer: Any, config: Any) -> None:
        super().__init__(image_processor, tokenizer)
        self.template = get_template(config.version)
        self.compat = TokenizationCompat.from_config(config.tokenization_compat)
        self.image_token_id = int(config.image_token_id)
        self.begin = _added_at_the_beginning(tokenizer)

    @classmethod
    def of(cls, model: Any) -> PolicyProcessor:
        return cls(PictureProcessor(model.visual_spec), model.tokenizer, model.config)

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        conversation: Sequence[Any],
        *args: Any,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        tools: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The text of one conversation, or of several; with tokenize=True what `__call__` makes of them."""
        if tools:
            raise ValueError(
                f"tools are {tools!r}, the templates of this package have no place for any; leave them out"
            )
        is_single = bool(conversation) and isinstance(conversation[0], Mapping)
        several = [conversation] if is_single else list(conversation)
        texts = [self._render(messages, add_generation_prompt) for messages in several]
        if not tokenize:
            return texts[0] if is_single else texts
        pictures = [pictures_of(messages) for messages in several]
        encoded = self(text=texts, images=pictures if any(pictures) else None)
        return encoded if return_dict else encoded["input_ids"]

    def _render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        turns = [{"role": message["role"], "content": text_of(message["content"])} for message in messages]
        return self.template.render(turns, add_generation_prompt, tokenizer=self.tokenizer)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        padding: bool = False,
        padding_side: str = "left",
        return_tensors: str | None = None,
        add_special_tokens: bool | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Ids in which every picture has all its tokens.

        images: per text a list, or all of them in reading order. A text that holds no beginning of a conversation is
        a completion when trl asks for it without special tokens: nothing is put before it.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        rows = [self._ids(words, is_continued=add_special_tokens is False and images is None) for words in texts]
        features = {} if images is None else dict(self.image_processor(images))
        if not padding:
            return BatchFeature({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows], **features})
        ids, mask = self._padded(rows, padding_side)
        return BatchFeature({"input_ids": ids, "attention_mask": mask, **features})

    def _ids(self, text: str, *, is_continued: bool) -> list[int]:
        ids, _ = tokenize_text(text, self.tokenizer, compat=self.compat, image_token_id=self.image_token_id)
        if is_continued and self.begin and ids[: len(self.begin)] == self.begin:
            ids = ids[len(self.begin) :]
        count = ids.count(self.image_token_id)
        whole = torch.tensor(ids, dtype=torch.long)
        per_picture = [self.image_processor.spec.tokens_per_image] * count
        return expand_image_tokens(whole, whole, per_picture, self.image_token_id)[0].tolist()

    def _padded(self, rows: Sequence[Sequence[int]], side: str) -> tuple[Tensor, Tensor]:
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), int(self.tokenizer.pad_token_id))
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            place = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
            ids[index, place] = torch.tensor(row, dtype=torch.long)
            mask[index, place] = 1
        return ids, mask

    def save_pretrained(self, *args: Any, **kwargs: Any) -> list[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Nothing: the folders of the model hold its tokenizer, template and picture size."""
        return []


def text_of(content: Any) -> str:
    """A message's text with `<image>` where its pictures stand."""
    if isinstance(content, str):
        return content
    return "".join(DEFAULT_IMAGE_TOKEN if part["type"] == "image" else part["text"] for part in content)


def parts_of(text: str) -> list[dict[str, str]]:
    """The reverse of `text_of`: the structured content of a message, each picture at its place."""
    parts: list[dict[str, str]] = []
    for index, words in enumerate(text.split(DEFAULT_IMAGE_TOKEN)):
        parts += [{"type": "image"}] if index else []
        parts += [{"type": "text", "text": words}] if words else []
    return parts


def pictures_of(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return [part["image"] for content in contents for part in content if part["type"] == "image"]


def flat(images: Any) -> list[Any]:
    """Pictures in reading order, from one, a list, or a list per text (None where a text has none)."""
    if images is None:
        return []
    if not isinstance(images, list | tuple):
        return [images]
    return [picture for entry in images for picture in flat(entry)]


def _opened(picture: Any, spec: VisualSpec) -> Any:
    if isinstance(picture, str) and picture == BLACK:
        return Image.fromarray(np.zeros((spec.image_size, spec.image_size, 3), np.uint8))
    return load_image(picture)


def _added_at_the_beginning(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before every text."""
    with_them, without = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    return with_them[: len(with_them) - len(without)] if with_them[-len(without) :] == without else with_them[:1]
