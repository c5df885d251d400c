"""A tokenizer, a picture geometry and small data sets on disk."""

import json

import pytest
from PIL import Image

from llava.batch import VisualSpec
from llava.conversation import get_template
from llava.utils.tokenizer import train_tokenizer
from tests.unit.data.toys import SIZE, episode_records, grey

TEXTS = [
    "Your task is: Go to the red ball. Wait next to the blue box.\n",
    "The next action is move forward 75 cm. The next action is turn left 30 degree.",
    "I think I should stop because I have finished the instruction. Where is the red ball?",
    "↑ ↑↑ ↑↑↑ ← ←← ←←← → →→ →→→ STOP",
]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS * 3, 700, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def spec():
    return VisualSpec(image_size=SIZE, tokens_per_image=4)


@pytest.fixture
def make_context(tokenizer, spec):
    from llava.data.base import DataContext, DataOptions

    def make(**options):
        options.setdefault("on_error", "raise")
        return DataContext(
            tokenizer=tokenizer, spec=spec, template=get_template("llama_3"), options=DataOptions(**options)
        )

    return make


@pytest.fixture
def navigation_folder(tmp_path):
    """Episodes 7 and 8 in files; frame i is grey(10 * i). Turns are there twice and the stop three times."""
    for episode in ("7", "8"):
        folder = tmp_path / "train" / episode
        folder.mkdir(parents=True)
        for i in range(6):
            Image.fromarray(grey(10 * i)).save(folder / f"frame_{i}.png")
    left, forward, stop = episode_records("7")
    other = [{**r, "q": "Wait next to the blue box."} for r in episode_records("8")]
    records = [stop, left, other[0], forward, left, stop, other[2], stop, other[1]]
    (tmp_path / "annotations.json").write_text(json.dumps(records))
    return tmp_path
