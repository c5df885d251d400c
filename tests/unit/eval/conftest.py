"""Toy episodes of the embedded world, policies that need no model, and random models of a few thousand weights."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llava.eval.lanes import EmbeddedLanes, WorldLanes
from llava.eval.policies import Decision
from llava.model.builder import build_model
from llava.navigation.actions import STOP, Action, ActionKind
from llava.navigation.prompt import NavilaFormat, StreamingFormat
from llava.navigation.worlds.base import CameraProfile
from llava.navigation.worlds.embedded import EmbeddedWorld
from llava.navigation.worlds.episodes import make_episodes
from llava.utils.tokenizer import train_tokenizer

CAMERA = CameraProfile(width=16, height=16)


@pytest.fixture(scope="session")
def episodes():
    return make_episodes("one_room", np.arange(7_000, 7_006), CAMERA)


@pytest.fixture
def batched():
    return lambda count: EmbeddedLanes(CAMERA)


@pytest.fixture
def one_by_one():
    return lambda count: WorldLanes(lambda: EmbeddedWorld(CAMERA), count)


class BrightnessPolicy:
    """Decides by what it sees: brightness of the newest picture, and how many pictures it has seen so far."""

    name = "brightness"

    def __init__(self, needs_every_frame: bool = True) -> None:
        self.needs_every_frame = needs_every_frame
        self.finished: list[str] = []
        self.frame_counts: dict[str, list[int]] = {}

    def act(self, views):
        return [self._one(view) for view in views]

    def _one(self, view):
        self.frame_counts.setdefault(view.key, []).append(len(view.frames))
        value = int(view.frames[-1].sum()) + len(view.actions)
        if len(view.actions) > 12 and value % 7 == 0:
            return Decision(action=STOP, tokens=5)
        kind = ActionKind(1 + value % 3)
        return Decision(action=Action(kind, 1 + value % 3), understood=value % 5 != 0, text=str(value), tokens=5)

    def finish(self, key):
        self.finished.append(key)

    def describe(self):
        return {"decoding": "none"}


@pytest.fixture
def brightness():
    return BrightnessPolicy


SENTENCES = [
    NavilaFormat().question("Walk to the red ball and stop."),
    "The next action is move forward 25 50 75 cm.",
    "The next action is turn left right 15 30 45 degree.",
    "I think I should stop because I have finished the instruction.",
    "Your task is: Go to the blue box and stop next to it.\n ↑ ↑↑ ↑↑↑ ← ←← ←←← → →→ →→→ STOP",
    "system You are a helpful language and vision assistant. user assistant",
]


def tiny_model(tokenizer, prompt, *, image_size: int = 16, positions: int = 2048, seed: int = 0):
    torch.manual_seed(seed)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = build_model(
        {
            "llm_cfg": {
                "model_type": "llama",
                "vocab_size": len(tokenizer),
                "num_key_value_heads": 2,
                "max_position_embeddings": positions,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                **words,
            },
            "vision_tower_cfg": {
                "model_type": "siglip_vision_model",
                "image_size": image_size,
                "patch_size": 8,
                **vision,
            },
            "mm_projector_cfg": {"mm_projector_type": "linear"},
            "version": "llama_3",
            "navigation_prompt": prompt.to_config(),
        },
        tokenizer=tokenizer,
    )
    for parameter in model.parameters():  # louder than the usual start, so that answers depend on pictures
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def favour(model, tokenizer, words, *, bonus: float = 6.0) -> None:
    """Make a random model answer mostly with some words: their rows of the head are enlarged."""
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
    with torch.no_grad():
        model.get_output_embeddings().weight[ids] *= bonus


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return train_tokenizer(SENTENCES * 3, 640, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def toys(tokenizer):
    """Random models of a few thousand weights."""

    def streaming(*, answers_visible=False, positions=2048):
        model = tiny_model(tokenizer, StreamingFormat(answers_visible=answers_visible), positions=positions)
        favour(model, tokenizer, StreamingFormat().action_format.vocabulary())
        return model

    def navila():
        return tiny_model(tokenizer, NavilaFormat(num_frames=4))

    return SimpleNamespace(streaming=streaming, navila=navila, plain=tiny_model, favour=favour)
