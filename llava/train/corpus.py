"""The text of a mixture, for training the tokenizer of an embedded model before any sample can be built."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import get_template
from llava.data.dataset_impl.grounding import grounding_dialogue
from llava.data.datasets_mixture import DataRegistry, Entry
from llava.data.utils import read_json, read_records
from llava.navigation.actions import STOP, Action, ActionKind
from llava.navigation.prompt import NavilaFormat, StreamingFormat, normalise_instruction

MEDIA_KEYS = frozenset({"frames", "image", "images", "video", "video_path", "video_id", "id"})
"""Fields of a record that name files, not words."""

MOVES = (ActionKind.FORWARD, ActionKind.LEFT, ActionKind.RIGHT)
ACTIONS = (STOP, *(Action(kind, steps) for kind in MOVES for steps in (1, 2, 3)))
SHORTEST_PHRASE = 12
"""Characters; shorter stretches are left to the words."""

NAVIGATION_TYPES = frozenset({"vlnce", "streaming"})


def corpus(registry: DataRegistry, mixture: str, template: str) -> Iterator[str]:
    """All words that training on the mixture can show: prompts, questions, answers, and the template's own text."""
    yield get_template(template).render([{"from": "human", "value": ""}], add_generation_prompt=True)
    for name in dict.fromkeys(part.name for part in registry.parts(mixture)):
        yield from _texts_of(registry.entries[name])


def fixed_phrases(template: str) -> list[str]:
    """What navigation prompts and answers repeat word for word; as single tokens a decision has 2.5x fewer."""
    gap = "\n"
    prompt = NavilaFormat(instruction="raw").question(gap).replace(DEFAULT_IMAGE_TOKEN, gap)
    system = re.sub(r"<\|[a-z_]+\|>", gap, get_template(template).system)
    answers = [NavilaFormat().action_format.write(action) for action in ACTIONS]
    stretches = [*prompt.split(gap), *system.split(gap), *answers]
    return sorted({text for text in stretches if len(text) >= SHORTEST_PHRASE})


def _texts_of(entry: Entry) -> Iterator[str]:
    navigates = entry.type in NAVIGATION_TYPES
    if navigates:
        yield from _navigation_texts()
    records = read_records(entry.paths["data_path"])
    for text, count in Counter(text for record in records for text in _strings(record)).items():
        yield from [text] * min(count, 2)  # the tokenizer asks which words occur more than once, no more
    if navigates:
        yield from {normalise_instruction(str(record.get("q", ""))): None for record in records}
    if "grounding_path" in entry.paths and entry.paths["grounding_path"].exists():
        yield from _grounding_texts(entry)


def _navigation_texts() -> Iterator[str]:
    """What the prompt formats add to an instruction, often enough that each answer becomes one token."""
    yield NavilaFormat().question("")
    yield from (piece.text or "" for piece in StreamingFormat().opening(""))
    yield from [StreamingFormat().action_format.write(action) for action in ACTIONS] * 100


def _grounding_texts(entry: Entry) -> Iterator[str]:
    """Dialogues about where things are, as the streaming data set asks them."""
    seen: dict[str, Any] = {}
    for decisions in read_json(entry.paths["grounding_path"]).values():
        for objects in decisions:
            for name, place in objects.items():
                seen.setdefault(f"{name} {place}", (name, place))
    for name, place in seen.values():
        yield " ".join(grounding_dialogue(name, place))


def _strings(value: Any) -> Iterator[str]:
    """Every text inside a record, paths and ids left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in MEDIA_KEYS:
                yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
