"""ScanQA: a question about a scan video, with one or several right answers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from llava.data.dataset_impl.video import VideoDataset
from llava.data.utils import BrokenSampleError
from llava.navigation.prompt import Message


class ScanQADataset(VideoDataset):
    """`{"video_id", "q", "a": answer or list of answers}`; of several one is drawn, always the same for one index."""

    def dialogue(self, record: Mapping[str, Any], index: int, num_pictures: int) -> list[Message]:
        question, answer = record.get("q"), record.get("a")
        if not isinstance(question, str) or not answer:
            raise BrokenSampleError(f"q is {question!r} and a is {answer!r}, expected a question and its answers")
        chance = random.Random(f"{self.context.options.seed}/{self.name}/{index}")
        drawn = chance.choice(answer) if isinstance(answer, list) else answer
        return super().dialogue({"q": question, "a": drawn}, index, num_pictures)
