"""LLaVA / ShareGPT records: text only, one picture, several pictures anywhere in several turns, or a video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.batch import Sample
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.base import DataContext, Dataset, Modality, Pictures, existing
from llava.data.dataset_impl.video import VideoDataset, dialogue_turns, pictures_first
from llava.data.preprocess import preprocess_multimodal
from llava.data.utils import BrokenSampleError, read_records
from llava.mm_utils import multiply_placeholders
from llava.navigation.prompt import Message

TAGGED_TEMPLATES = ("v0_mmtag", "v1_mmtag")
VIDEO_KEYS = ("video", "video_id", "video_path")


def picture_paths(record: Mapping[str, Any]) -> list[str]:
    """Paths under `image` or `images`: one string, a list of strings, or a list of {"path": string}."""
    value = record.get("images", record.get("image", []))
    listed = value if isinstance(value, list) else [value]
    return [_path(item) for item in listed]


def _path(item: Any) -> str:
    path = item.get("path") if isinstance(item, Mapping) else item
    if not isinstance(path, str) or not path:
        raise BrokenSampleError(f"a picture is {item!r}, expected its path or {{'path': its path}}")
    return path


class LLaVADataset(VideoDataset):
    """`{"id", "image" | "images" | "video", "conversations": [{"from": "human" | "gpt", "value"}]}`.

    Placeholders stay where the record has them; a record without any gets all its pictures before the first question.
    """

    def __init__(
        self, name: str, context: DataContext, *, data_path: str | Path, media_dir: str | Path | None = None
    ) -> None:
        Dataset.__init__(self, name, context, media_dir)  # text-only records need no media folder
        self.records = read_records(existing(data_path, key="data_path", dataset=name))
        self.pictures = None if self.media_dir is None else Pictures(self.media_dir, context.spec)

    def build(self, index: int) -> Sample:
        record = self.records[index]
        if any(key in record for key in VIDEO_KEYS):
            return super().build(index)
        paths = picture_paths(record)
        if paths and self.pictures is None:
            raise BrokenSampleError(f"the record names pictures {paths[:3]} and the data set has no media_dir; add it")
        messages = self.placed(dialogue_turns(record), len(paths))
        if self.pictures is None or not paths:
            return self.conversation(lambda: messages, None)
        self._require_one_scene(paths)
        rule = self.context.spec.view_rule
        if rule is not None and rule.cuts(len(paths)):
            return self.conversation(lambda: messages, self.pictures.read_views(paths))
        if len(paths) != 1 or self.context.spec.aspect_mode != "dynamic":
            return self.with_objects(self.conversation(lambda: messages, self.pictures.read(paths)), paths)
        tiles = self.pictures.read_tiles(paths[0])
        tiled = [{**turn, "value": multiply_placeholders(turn["value"], len(tiles))} for turn in messages]
        sample = self.conversation(lambda: tiled, tiles)
        if self.object_masks is not None:
            sample["object_patches"] = self.object_masks.of_tiles(paths[0])
        return sample

    def _require_one_scene(self, paths: list[str]) -> None:
        options = self.context.options.object_masks
        if options is not None and options.shares_background and len(paths) > 1:
            raise BrokenSampleError(
                f"the record has {len(paths)} pictures that are no frames of a clip, and scene_split has "
                "background_per 'clip', which gives a sample one background; set background_per to 'picture'"
            )

    def placed(self, turns: list[Message], num_pictures: int) -> list[Message]:
        """The turns with placeholders in the form of the LLaVA family; text-only dialogues stay as they are."""
        if not num_pictures:
            return turns
        if not any(DEFAULT_IMAGE_TOKEN in turn["value"] for turn in turns):
            turns = pictures_first(turns, num_pictures)
        return preprocess_multimodal(turns, mmtag=self.context.template.version in TAGGED_TEMPLATES)

    def num_pictures(self, index: int) -> int:
        record = self.records[index]
        if any(key in record for key in VIDEO_KEYS):
            return self.context.options.num_video_frames
        value = record.get("images", record.get("image"))
        count, spec = len(value) if isinstance(value, list) else int(value is not None), self.context.spec
        # how often a picture is cut is only known from the picture itself: at most so many times
        if spec.view_rule is not None and spec.view_rule.cuts(count):
            return count * spec.view_rule.most_views
        return spec.max_tiles + 1 if count == 1 and spec.aspect_mode == "dynamic" else count

    def modality_of(self, index: int) -> Modality:
        if any(key in self.records[index] for key in VIDEO_KEYS):
            return "video"
        return "image" if self.num_pictures(index) else "text"
