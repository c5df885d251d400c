"""What the README says of models and their parts is what runs."""

from __future__ import annotations

from itertools import combinations as choose
from itertools import product

import pytest

from llava.model.language_model import language_models
from llava.model.multimodal_encoder.builder import VISION_TOWERS
from llava.model.multimodal_projector.base_projector import PROJECTORS
from tests.end_to_end.model_matrix import (
    COMMAND,
    ENCODERS,
    LANGUAGE_MODELS,
    README,
    SCALES,
    combinations,
    compute,
    stored_table,
    table,
)
from tests.end_to_end.model_matrix import (
    PROJECTORS as SHOWN_PROJECTORS,
)


def test_every_registered_part_has_a_row():
    assert set(language_models()) == set(LANGUAGE_MODELS)
    assert set(PROJECTORS) <= set(SHOWN_PROJECTORS)
    shown = {VISION_TOWERS[name] for name in ENCODERS}
    assert shown == set(VISION_TOWERS.values())


def test_every_two_parts_meet():
    kinds = (LANGUAGE_MODELS, ENCODERS, SCALES, SHOWN_PROJECTORS)
    met = {(i, j, c.parts()[i], c.parts()[j]) for c in combinations() for i, j in choose(range(4), 2)}
    assert met == {(i, j, *names) for i, j in choose(range(4), 2) for names in product(kinds[i], kinds[j])}


@pytest.mark.timeout(900)  # a busy machine must not fail it
def test_the_table_in_the_readme_is_what_was_computed():
    """About 92 models of a few thousand weights, a quarter of a second each."""
    found, stored = table(compute()), stored_table(README.read_text(encoding="utf-8"))
    assert stored == found, f"README.md is not what was computed; write it with: {COMMAND}"
    assert max(map(len, found.splitlines())) <= 100
