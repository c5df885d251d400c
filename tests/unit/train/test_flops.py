"""FLOPs of a step: 6 per weight and token where all learns, less where parts are frozen; as torch counts them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llava.data.collate import DataCollator
from llava.train.flops import FlopCount, Work, count_flops, sample_lengths, work_of
from tests.unit.train.toy import IMAGE_TOKEN, VOCABULARY, ToyData, toy_model

LAYER = 4 * 16 * 16 + 3 * 16 * 32
"""Matrix entries of one layer of the toy: q, k, v, o of width 16, and a feed-forward layer of width 32."""


def tuned(*, language_model: bool = True, vision_tower: bool = True, mm_projector: bool = True):
    model = toy_model()
    model.set_trainable(language_model=language_model, vision_tower=vision_tower, mm_projector=mm_projector)
    return model


def collated(mode: str = "pad", samples: int = 2) -> dict:
    collate = DataCollator(pad_token_id=0, max_length=64, mode=mode, rows="one", image_token_id=IMAGE_TOKEN)
    data = ToyData(8)
    return dict(collate([data[i] for i in range(samples)]))


def test_a_language_model_that_learns_needs_six_flops_per_weight_and_token():
    counts = count_flops(tuned())
    assert counts.per_token == 6 * 2 * LAYER
    assert counts.per_row == 6 * 16 * VOCABULARY
    assert counts.per_pair == 3 * 4 * 16 * 2  # scores and weighted sum, width 16, two layers, forward and backward


def test_a_frozen_language_model_above_a_projector_that_learns_needs_four():
    counts = count_flops(tuned(language_model=False, vision_tower=False))
    assert counts.per_token == 4 * 2 * LAYER
    assert counts.per_row == 4 * 16 * VOCABULARY


def test_a_frozen_tower_is_only_run_forward():
    whole, frozen, none = (
        count_flops(tuned(vision_tower=tower, mm_projector=projector)).per_picture
        for tower, projector in ((True, True), (False, True), (False, False))
    )
    tower = (whole - frozen) / 2  # gradient passing through, gradient of the weights
    projector = (frozen - none) / 2
    assert none == tower + projector


@pytest.mark.parametrize(
    ("parts", "first_layer"),
    [
        ({}, True),
        ({"vision_tower": False}, False),
        ({"vision_tower": False, "language_model": False}, False),
        ({"vision_tower": False, "mm_projector": False}, False),
    ],
)
def test_the_count_is_that_of_torch_for_a_whole_step(parts, first_layer):
    """torch counts all pairs of queries and keys, not half of them; and no gradient towards the pixels."""
    model, batch = tuned(**parts), collated(samples=1)
    model.llm.set_attn_implementation("eager")
    model.vision_tower.vision_tower.set_attn_implementation("eager")
    counts, work = count_flops(model), work_of(batch)
    ours = counts.of(work) + counts.per_pair * (work.tokens**2 - work.pairs)
    batch.pop("sample_ids")
    with FlopCounterMode(display=False) as counter:
        model.train()(**batch).loss.backward()
    difference = ours - counter.get_total_flops()
    assert difference == pytest.approx(0, abs=0.02 * ours) if first_layer else difference == 0


def test_padding_is_no_work_and_packed_samples_do_not_attend_to_each_other():
    padded, packed = work_of(collated("pad", 3)), work_of(collated("pack", 3))
    lengths = ToyData(8).lengths[:3]
    expected = Work(
        samples=3,
        tokens=sum(lengths),
        pairs=sum(n * (n + 1) // 2 for n in lengths),
        rows=padded.rows,
        pictures=3,
    )
    assert padded == expected
    assert packed == expected


def test_lengths_of_packed_rows_are_counted_row_by_row():
    segments = torch.tensor([[0, 0, 1, 1, 1, -1], [0, 1, 2, 2, -1, -1]])
    lengths = sample_lengths(torch.zeros(2, 6, dtype=torch.long), None, segments)
    assert [n for n in lengths.tolist() if n] == [2, 3, 1, 1, 2]


def test_work_times_flops_per_unit():
    counts = FlopCount(per_token=10.0, per_pair=1.0, per_row=100.0, per_picture=1000.0, per_frame=7.0)
    assert counts.of(Work(tokens=3, pairs=6, rows=2, pictures=1, frames=2)) == 30 + 6 + 200 + 1000 + 14


def test_a_model_without_storage_is_counted_as_well():
    model = tuned()
    assert count_flops(model.to("meta")) == count_flops(tuned())


def test_the_next_frame_loss_costs_its_predictor_and_a_copied_teacher():
    model = tuned()
    model.initialize_continuous_autoregressive_modules({"embedding_dim": None, "num_layers": 1, "num_heads": 2})
    copied = count_flops(model).per_frame
    module = model.autoregressive_reconstruction
    weights = sum(p.numel() for p in module.predictor.parameters() if p.ndim > 1)
    tower = copied - 6 * weights * module.target_side**2
    frozen = tuned(vision_tower=False, mm_projector=False)
    seen = count_flops(frozen).per_picture
    assert 0 < tower < seen, "the tower without the projector, forward only"
