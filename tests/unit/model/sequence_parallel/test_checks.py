"""What would come out differently in parts than as a whole is refused before a run."""

from __future__ import annotations

import pytest
import torch

from llava.model.attention import AttendsItself, build_layout, packed_attention_forward
from llava.model.sequence_parallel import SequenceParallelConfig, check_model, create_group
from tests.unit.train.toy import toy_model

ULYSSES = SequenceParallelConfig(size=2)
RING = SequenceParallelConfig(size=2, ring_size=2)


def test_an_ordinary_model_passes():
    for config in (ULYSSES, RING):
        check_model(toy_model(), config)


@pytest.mark.parametrize(
    ("name", "value", "config", "message"),
    [
        ("num_attention_heads", 3, ULYSSES, "3 attention heads and the Ulysses degree is 2"),
        ("attention_dropout", 0.1, RING, "attention_dropout is 0.1 and the ring computes none"),
        ("output_router_logits", True, ULYSSES, "output_router_logits is True"),
        ("rope_parameters", {"rope_type": "longrope", "rope_theta": 1e4}, ULYSSES, "of type 'longrope'"),
        ("rope_parameters", {"full_attention": {"rope_type": "dynamic"}}, RING, "of type 'dynamic'"),
        ("_attn_implementation", "eager", ULYSSES, "inside attn_implementation 'sdpa', found 'eager'"),
        ("layer_types", ["linear_attention"], ULYSSES, "layers of full or sliding attention"),
    ],
)
def test_a_model_that_cannot_be_split_is_refused_with_the_reason(name, value, config, message):
    model = toy_model()
    setattr(model.llm.config, name, value)
    with pytest.raises(ValueError, match=message):
        check_model(model, config)


def test_a_group_needs_processes():
    with pytest.raises(ValueError, match="start with torchrun --nproc_per_node 2"):
        create_group(ULYSSES)


def test_a_layout_that_attends_itself_takes_the_place_of_a_packed_one():
    class Doubles:
        def attend(self, query, key, value, *, dropout=0.0, scaling=None, window=None):
            return 2 * query.transpose(1, 2)

    query = torch.ones(1, 2, 3, 4)
    assert isinstance(Doubles(), AttendsItself)
    assert not isinstance(build_layout(torch.zeros(1, 3, dtype=torch.long), None), AttendsItself)
    found, _ = packed_attention_forward(torch.nn.Identity(), query, query, query, None, packed_layout=Doubles())
    assert torch.equal(found, 2 * query.transpose(1, 2))
