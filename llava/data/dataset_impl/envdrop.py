"""EnvDrop: the inverse task, from the video of a walk to its instruction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava.data.dataset_impl.video import VideoDataset, answer_text
from llava.navigation.prompt import Message, route_description_messages
from llava.video.frame_sampling import vlnce_indices


class EnvDropDataset(VideoDataset):
    """`{"video_path" | "video" | "video_id", "instruction"}`; frames by the rule of the navigation data."""

    def dialogue(self, record: Mapping[str, Any], index: int, num_pictures: int) -> list[Message]:
        return route_description_messages(num_pictures, answer_text(record.get("instruction")))

    def choose(self, length: int) -> list[int]:
        return vlnce_indices(length, self.context.options.num_video_frames)
