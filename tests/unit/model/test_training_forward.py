"""What a training step needs of a model besides its numbers: gradients everywhere, nothing left waiting."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llava.constants import IGNORE_INDEX
from tests.numerics.models import IMAGE, pictures, tiny_model


def batch_of(model: Any, num_pictures: int = 2, answer: int = 3) -> dict[str, Tensor]:
    ids = torch.tensor([[1, *[IMAGE] * (num_pictures * model.tokens_per_image), 5, 6, 7, 8]])
    labels = torch.full_like(ids, IGNORE_INDEX)
    if answer:
        labels[0, -answer:] = ids[0, -answer:]
    return {"input_ids": ids, "labels": labels, "images": pictures(num_pictures)}


def without_gradient(model: Any) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("llm", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tower", ["siglip_vision_model", "clip_vision_model", "siglip_stem"])
def test_a_gradient_reaches_every_trained_weight(llm: str, tower: str):
    model = tiny_model(llm, tower).train()
    model(**batch_of(model)).loss.backward()
    assert without_gradient(model) == []
    for part in (model.llm, model.vision_tower, model.mm_projector):
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())


def test_layers_behind_the_selected_one_are_never_trained():
    model = tiny_model(tower="siglip_vision_model", mm_vision_select_layer=-2)
    model.set_trainable(language_model=True, vision_tower=True, mm_projector=True)
    trained = {name for name, p in model.vision_tower.vision_tower.named_parameters() if p.requires_grad}
    assert any(name.startswith("encoder.layers.0") for name in trained)
    assert not any(name.startswith(("encoder.layers.1", "post_layernorm", "head")) for name in trained)


def test_parts_are_frozen_and_freed_as_a_whole():
    model = tiny_model()
    model.set_trainable(language_model=False, vision_tower=False, mm_projector=True)
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"mm_projector"}


def test_frozen_vision_parts_stay_in_eval_mode_while_training():
    model = tiny_model().train()
    model.set_trainable(language_model=True, vision_tower=False, mm_projector=True)
    model(**batch_of(model))
    assert not model.vision_tower.training
    assert model.mm_projector.training
    assert model.llm.training


@pytest.mark.parametrize("answer", [0, 3])
def test_a_rank_without_pictures_or_labels_still_touches_every_trained_weight(answer: int):
    model = tiny_model().train()
    batch = batch_of(model, num_pictures=0, answer=answer)
    loss = model(**{**batch, "images": None}).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert without_gradient(model) == []
    assert all(p.grad.abs().max() == 0 for p in model.vision_tower.parameters() if p.grad is not None)


def test_a_frozen_tower_costs_a_text_batch_nothing():
    model = tiny_model().train()
    model.set_trainable(language_model=True, vision_tower=False, mm_projector=False)
    calls = []
    model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    model(**{**batch_of(model, num_pictures=0), "images": None}).loss.backward()
    assert calls == []


def test_the_loss_is_a_sum_over_the_tokens_of_the_whole_step():
    model = tiny_model().train()
    batch = batch_of(model, answer=3)
    mean = model(**batch).loss
    shared = model(**batch, num_items_in_batch=torch.tensor(12)).loss
    assert shared.item() == pytest.approx(mean.item() * 3 / 12, rel=1e-6)
    assert model.accepts_loss_kwargs


def test_terms_have_names_and_carry_no_graph():
    model = tiny_model().train()
    output = model(**batch_of(model))
    assert set(output.loss_terms) == {"main_loss"}
    assert output.loss_terms["main_loss"] == output.loss
    assert not output.loss_terms["main_loss"].requires_grad


def test_only_the_wanted_logits_are_computed():
    model = tiny_model()
    batch = batch_of(model)
    with torch.no_grad():
        every = model(**batch).logits
        last = model(**batch, logits_to_keep=2).logits
        some = model(**batch, logits_to_keep=torch.tensor([0, 4])).logits
    assert torch.equal(last, every[:, -2:])
    assert torch.equal(some, every[:, [0, 4]])


def test_the_head_sees_supervised_rows_only():
    model = tiny_model().train()
    rows = []
    model.llm.lm_head.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel()))
    model(**batch_of(model, answer=3))
    assert rows == [3]


def test_gradient_checkpointing_changes_no_gradient():
    model = tiny_model().train()
    batch = {**batch_of(model), "segment_ids": torch.zeros_like(batch_of(model)["input_ids"])}
    found = []
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        model(**batch).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_uint8_and_normalised_pictures_are_the_same_picture():
    model = tiny_model(tower="clip_vision_model")
    shown = pictures(2)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in model.config.pixel_statistics())
    with torch.no_grad():
        from_bytes, from_floats = model.encode_images(shown), model.encode_images((shown / 255 - mean) / std)
    assert torch.allclose(from_bytes, from_floats, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(model.encode_images(shown[None]), from_bytes)
        assert torch.equal(model.encode_images([shown[0], shown[1:]]), from_bytes)


@pytest.mark.parametrize(
    ("num_placeholders", "num_pictures", "message"),
    [
        (1, 2, "picture 1 has no placeholder in the text: 2 pictures need 2 placeholders, or 8 expanded ones, found 1"),
        (3, 2, "picture 2 is asked for by the text but was not given"),
        (4, 0, "picture 0 is asked for by the text but was not given"),
        (7, 2, r"picture 1 \(row 0, columns 1..7\) has 3 placeholders, expected 4"),
        (12, 2, "picture 2 is asked for by the text but was not given"),
    ],
)
def test_a_wrong_number_of_placeholders_names_the_picture(num_placeholders: int, num_pictures: int, message: str):
    model = tiny_model()
    ids = torch.tensor([[1, *[IMAGE] * num_placeholders, 5]])
    images = pictures(num_pictures) if num_pictures else None
    with pytest.raises(ValueError, match=message):
        model(ids, images)


def test_pictures_of_another_size_are_refused():
    model = tiny_model()
    with pytest.raises(ValueError, match="pictures are 48x48, the tower reads 32x32"):
        model(torch.tensor([[1, -200, 5]]), pictures(1, size=48))


def test_branches_under_flash_attention_are_refused():
    from llava.model.attention import attention_arguments

    ids = torch.tensor([[0, 0, 1]])
    with pytest.raises(ValueError, match="cannot hide branches"):
        attention_arguments("flash_attention_2", torch.float32, torch.zeros_like(ids), ids)


def test_flash_attention_gets_the_boundaries_of_packed_samples():
    from llava.model.attention import attention_arguments

    arguments = attention_arguments("flash_attention_2", torch.bfloat16, torch.tensor([[0, 0, 1], [0, 1, -1]]), None)
    assert arguments["cu_seq_lens_q"].tolist() == [0, 2, 3, 4, 5, 6]
    assert arguments["max_length_q"] == 2
    assert arguments["attention_mask"] is None


def test_a_tower_answers_its_four_questions():
    tower = tiny_model(tower="clip_vision_model").vision_tower
    assert (tower.hidden_size, tower.num_patches, tower.image_size) == (24, 16, 32)
    assert tower(pictures(2)).shape == (2, 16, 24)
    with pytest.raises(ValueError, match="whole pictures only"):
        tower(pictures(1), patch_ids=torch.zeros(1, 3, dtype=torch.long))


def test_the_class_token_is_kept_on_request():
    model = tiny_model(tower="clip_vision_model", mm_vision_select_feature="cls_patch", mm_projector_cfg="linear")
    assert model.vision_tower.num_patches == 17
    assert model.tokens_per_image == 17
    assert model.visual_spec == model.config.visual_spec()


@pytest.mark.parametrize("tower", ["siglip_vision_model", "clip_vision_model", "siglip_stem"])
def test_the_config_and_the_model_tell_the_data_side_the_same(tower: str):
    model = tiny_model(tower=tower)
    assert model.visual_spec == model.config.visual_spec()
    assert model.visual_spec.tokens_per_image == 4
    assert model.encode_images(pictures(1)).shape[1] == 4
