"""Costs are measured on the machine at hand, and a cache that is told them decides by them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llava.model.builder import build_model
from llava.model.scene_split import measure_costs
from llava.model.scene_split.parts import SplitParts
from tests.numerics.models import pictures, tiny_config
from tests.unit.model.scene_split.scene_toy import SIDE, asked, make_cache, objects, prompt, provenances, split_model


@pytest.fixture(scope="module")
def model() -> Any:
    return split_model()


def test_every_cost_of_this_machine_is_measured(model: Any, tmp_path: Path, monkeypatch: Any):
    """The tower is made to take 16 ms for its 16 tokens, so its cost is known from below."""
    encode = SplitParts.encode_background

    def slow(self: Any, *given: Any) -> Any:
        time.sleep(0.016)
        return encode(self, *given)

    monkeypatch.setattr(SplitParts, "encode_background", slow)
    costs = measure_costs(model, disk_folder=tmp_path, rounds=2)
    assert costs.encode_s_per_token > 1e-3
    assert costs.prefill_s_per_token > 0 and costs.lookup_s > 0
    assert costs.device_s_per_byte > 0 and costs.disk_s_per_byte > 0 and costs.host_s_per_byte == 0
    assert list(tmp_path.iterdir()) == []


def test_a_cache_with_measured_costs_keeps_what_pays_and_leaves_the_rest(model: Any):
    """The same request, with the lookup as dear as the whole answer and with one that is free."""
    measured = measure_costs(model, rounds=1)
    dear, cheap = replace(measured, lookup_s=60.0), replace(measured, lookup_s=0.0, hit_s=0.0, device_s_per_byte=0.0)
    for costs, seen in ((dear, ["bypass:cost"] * 2), (cheap, ["miss", "exact_kv"])):
        cache, ids, image = make_cache(costs=costs), prompt(model, 7), pictures(1, size=SIDE)
        found = [asked(model, ids, image, cache, object_patches=objects(15), keep_objects=False) for _ in "ab"]
        assert [provenances(answer)[0] for answer in found] == seen


def test_what_cannot_be_measured_is_refused(model: Any):
    with pytest.raises(ValueError, match="rounds is 0"):
        measure_costs(model, rounds=0)
    with pytest.raises(ValueError, match="trained without scene_split"):
        measure_costs(build_model(tiny_config()).eval())
