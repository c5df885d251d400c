"""Each family of language models is transformers' own behind our door: alone, with pictures, padded, packed, stored."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import llava
from llava.constants import IGNORE_INDEX
from llava.model import attention
from llava.model.attention import _flex_mask, implementation_for, layer_windows, may_attend, packed_attention_forward
from llava.model.builder import build_model
from llava.model.language_model import LANGUAGE_MODELS
from tests.numerics.models import IMAGE, pictures, tiny_config, tiny_model, worst

FAMILIES = ["mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "phi3"]
WINDOWED = ["mistral", "mixtral", "gemma2", "gemma3_text", "phi3"]
TOLERANCE = 1e-5
GREEDY = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}


def theirs(model: Any) -> Any:
    """transformers' causal language model with the same weights; Gemma 2 with the one kernel that caps its scores."""
    config = AutoConfig.for_model(**model.llm.config.to_dict())
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    twin = AutoModelForCausalLM.from_config(config, attn_implementation="eager" if capped else "sdpa")
    twin.load_state_dict(model.llm.state_dict())
    return twin.eval()


def text(*lengths: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 50, (length,), generator=generator) for length in lengths]


def with_picture(ids: Tensor, model: Any) -> Tensor:
    """The picture's expanded placeholders behind the first token."""
    return torch.cat([ids[:1], torch.full((model.tokens_per_image,), IMAGE), ids[1:]])


def padded(rows: list[Tensor], side: str = "right", value: int = 0) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)


def mask_of(rows: list[Tensor], side: str = "right") -> Tensor:
    return padded([torch.ones_like(row) for row in rows], side)


@pytest.mark.parametrize("llm", FAMILIES)
def test_text_gets_the_logits_and_the_loss_of_transformers_own_class(llm: str):
    model = tiny_model(llm)
    ids = torch.stack(text(14, 14))
    with torch.no_grad():
        found, expected = model(ids, labels=ids), theirs(model)(ids, labels=ids)
    assert expected.logits.abs().max() > 0.5
    assert worst(found.logits, expected.logits) < TOLERANCE  # measured worst: 0
    assert worst(found.loss, expected.loss) < TOLERANCE  # measured worst: 4.8e-7


@pytest.mark.parametrize("llm", FAMILIES)
def test_a_picture_is_what_the_language_model_sees_when_fed_by_hand(llm: str):
    model, images = tiny_model(llm), pictures(1)
    twin, (row,) = theirs(model), text(12)
    ids = with_picture(row, model)[None]
    with torch.no_grad():
        embeds = twin.get_input_embeddings()(ids.masked_fill(ids == IMAGE, 0))
        embeds[0, 1 : 1 + model.tokens_per_image] = model.encode_images(images)[0]
        expected = twin(inputs_embeds=embeds).logits
        assert worst(model(ids, images).logits, expected) < TOLERANCE  # measured worst: 0


@pytest.mark.parametrize("llm", FAMILIES)
def test_a_training_step_has_the_gradients_of_transformers_own_class(llm: str):
    model = tiny_model(llm).train()
    twin, ids = theirs(model).train(), torch.stack(text(14, 14))
    model(ids, labels=ids).loss.backward()
    twin(ids, labels=ids).loss.backward()
    assert twin.get_output_embeddings().weight.grad.abs().max() > 1e-2
    for name, parameter in twin.named_parameters():
        found = model.llm.get_parameter(name).grad
        assert worst(found, parameter.grad) < TOLERANCE * max(1.0, parameter.grad.abs().max().item())


@pytest.mark.parametrize("llm", FAMILIES)
def test_answers_of_a_left_padded_batch_are_those_of_its_rows_alone(llm: str):
    model, images = tiny_model(llm), pictures(2)
    rows = [with_picture(row, model) for row in text(12, 5)]
    together = model.generate(padded(rows, "left"), images, mask_of(rows, "left"), **GREEDY)
    alone = [model.generate(row[None], images[i : i + 1], **GREEDY)[0] for i, row in enumerate(rows)]
    assert torch.equal(together, torch.stack(alone))


def packed(rows: list[Tensor], padding: int = 0) -> dict[str, Tensor]:
    segments = torch.cat([torch.full_like(row, index) for index, row in enumerate(rows)])
    pad = torch.nn.functional.pad
    ids, segments = pad(torch.cat(rows), (0, padding)), pad(segments, (0, padding), value=-1)
    return {"input_ids": ids[None], "segment_ids": segments[None]}


@pytest.mark.parametrize("llm", FAMILIES)
@pytest.mark.parametrize("attn", [None, "eager"])
def test_packed_rows_are_the_padded_rows(llm: str, attn: str | None):
    model, images = tiny_model(llm, attn=attn), pictures(3)
    rows = [with_picture(row, model) for row in text(12, 3, 9)]
    with torch.no_grad():
        apart = model(padded(rows), images, mask_of(rows)).logits[mask_of(rows).bool()]
        together = model(**packed(rows, padding=4), images=images).logits[0, : len(apart)]
    assert worst(together, apart) < TOLERANCE  # measured worst: 1.3e-6


@pytest.mark.parametrize("llm", FAMILIES)
@pytest.mark.parametrize("attn", [None, "eager"])
def test_a_window_is_counted_as_if_other_branches_were_not_there(llm: str, attn: str | None):
    model = tiny_model(llm, attn=attn)
    trunk, aside, rest = text(9, 7, 8)
    branches = torch.cat([torch.zeros(9), torch.ones(7), torch.zeros(8)]).long()[None]
    with torch.no_grad():
        found = model(torch.cat([trunk, aside, rest])[None], branch_ids=branches).logits[0]
        branch, whole = (model(torch.cat([trunk, row])[None]).logits[0] for row in (aside, rest))
    assert worst(found[:16], branch) < TOLERANCE  # measured worst: 1.3e-6
    assert worst(found[16:], whole[9:]) < TOLERANCE


@pytest.mark.parametrize("llm", WINDOWED)
def test_the_window_of_the_tests_matters(llm: str):
    narrow, ids = tiny_model(llm), torch.stack(text(14))
    config = tiny_config(llm)
    config["llm_cfg"]["sliding_window"] = 64
    wide = build_model(config).eval()
    wide.load_state_dict(narrow.state_dict())
    with torch.no_grad():
        assert worst(narrow(ids).logits, wide(ids).logits) > 1e-2


def test_a_window_by_hand():
    segments, branches = torch.tensor([[0, 0, 0, 0, 1, 1]]), torch.tensor([[0, 0, 1, 0, 0, 0]])
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],  # the aside stands at position 2, as does the next token of the trunk
        [0, 1, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]
    assert may_attend(segments, branches, 2)[0].int().tolist() == expected


def test_the_flexible_kernel_gets_the_same_rule():
    from torch.nn.attention.flex_attention import create_mask

    segments = torch.tensor([[0] * 8 + [1] * 6, [0] * 11 + [-1] * 3])
    branches = torch.tensor([[0] * 4 + [1] * 3 + [0] * 7, [0] * 14])
    for window in (None, 3):
        rule = _flex_mask(segments, branches, window).mask_mod
        found = create_mask(rule, 2, 1, 14, 14, device="cpu")
        assert torch.equal(found[:, 0], may_attend(segments, branches, window))


def reference_varlen(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, *_: Any, scale: Any, window_size: Any) -> Tensor:
    """What torch's kernel on CUDA computes: [T, H, D] with segments end to end, and as many keys before the query."""
    parts = []
    for start, stop in itertools.pairwise(bounds.tolist()):
        far = torch.arange(stop - start)[:, None] - torch.arange(stop - start)[None, :]
        seen = (far >= -window_size[1]) & ((far <= window_size[0]) | (window_size[0] < 0))
        heads = (t[start:stop].transpose(0, 1) for t in (q, k, v))
        parts.append(torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=seen, scale=scale))
    return torch.cat(parts, dim=1).transpose(0, 1)


@pytest.mark.parametrize("window", [None, 3])
def test_the_kernel_of_cuda_gets_the_same_window(monkeypatch: pytest.MonkeyPatch, window: int | None):
    monkeypatch.setattr(attention, "varlen_attn", reference_varlen)
    layout = attention.build_layout(torch.tensor([[0] * 8 + [1] * 6, [0] * 11 + [1] * 3]), None)
    q, k, v = (torch.randn(2, heads, 14, 8) for heads in (4, 2, 2))
    found = attention._attend_varlen(q, k, v, layout, None, window)
    assert worst(found, attention._attend_by_segment(q, k, v, layout, window)) < TOLERANCE


@pytest.mark.parametrize("llm", FAMILIES)
def test_a_saved_model_reads_back_to_the_bit_and_auto_classes_know_it(tmp_path: Path, llm: str):
    model = tiny_model(llm)
    model.save_pretrained(tmp_path)
    for again in (llava.load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert type(again) is type(model)
        expected, found = model.state_dict(), again.state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        assert again.llm.config._attn_implementation == model.llm.config._attn_implementation
        ids, images = torch.tensor([[1, -200, 5, 6, 7, 8, 9]]), pictures(1)
        with torch.no_grad():
            assert torch.equal(model(ids, images).logits, again(ids, images).logits)


# ---- Gemma ----


@pytest.mark.parametrize("llm", ["gemma", "gemma2", "gemma3_text"])
def test_gemma_scales_text_and_leaves_visual_tokens_alone(llm: str):
    model, images = tiny_model(llm), pictures(1)
    seen: dict[str, Tensor] = {}
    decoder = model.llm.get_decoder()
    hook = decoder.register_forward_pre_hook(lambda _, __, kw: seen.update(kw), with_kwargs=True)
    with torch.no_grad():
        model(torch.tensor([[5, -200, 6]]), images)
        tokens = model.encode_images(images)[0]
    hook.remove()
    embeds, table = seen["inputs_embeds"][0], model.llm.get_input_embeddings().weight
    assert worst(embeds[0], table[5] * 32**0.5) < TOLERANCE
    assert torch.equal(embeds[1:-1], tokens)
    assert worst(first_input_of_the_layers(decoder, embeds), embeds) == 0  # the decoder scales nothing itself


def first_input_of_the_layers(decoder: Any, embeds: Tensor) -> Tensor:
    seen = []
    hook = decoder.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        decoder(inputs_embeds=embeds[None])
    hook.remove()
    return seen[0][0]


def test_paligemma_leaves_visual_tokens_alone_too():
    from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaModel, SiglipVisionConfig

    width = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision = SiglipVisionConfig(image_size=16, patch_size=8, projection_dim=32, vision_use_head=False, **width)
    language = GemmaConfig(vocab_size=60, num_key_value_heads=2, head_dim=8, pad_token_id=0, **width)
    model = PaliGemmaModel(
        PaliGemmaConfig(vision_config=vision, text_config=language, image_token_id=59, projection_dim=32)
    ).eval()
    seen: dict[str, Tensor] = {}
    model.language_model.register_forward_pre_hook(lambda _, __, kw: seen.update(kw), with_kwargs=True)
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        model(input_ids=torch.tensor([[59] * 4 + [5]]), pixel_values=pixels)
        projected = model.multi_modal_projector(model.vision_tower(pixels).last_hidden_state)
    assert worst(seen["inputs_embeds"][:, :4], projected) == 0
    embeds = seen["inputs_embeds"][0]
    assert worst(first_input_of_the_layers(model.language_model, embeds), embeds) == 0


def test_gemma2_caps_its_logits_in_every_path():
    config = tiny_config("gemma2")
    config["llm_cfg"]["final_logit_softcapping"] = 0.5
    model = build_model(config)
    with torch.no_grad():
        model.llm.lm_head.weight.mul_(20)
    ids = torch.stack(text(9))
    evaluated = model.eval()(ids, labels=ids)
    trained = model.train()(ids, labels=ids)
    assert 0.4 < evaluated.logits.abs().max() <= 0.5
    assert trained.loss.item() == pytest.approx(evaluated.loss.item(), rel=1e-6)
    assert trained.loss.item() == pytest.approx(theirs(model)(ids, labels=ids).loss.item(), rel=1e-6)


def test_a_kernel_that_cannot_cap_scores_is_refused():
    with pytest.raises(ValueError, match="gemma2 caps its attention scores at 50"):
        tiny_model("gemma2", attn="sdpa")
    assert implementation_for(None, SimpleNamespace(attn_logit_softcapping=50.0)) == "eager"
    assert implementation_for("flex_attention", SimpleNamespace(attn_logit_softcapping=50.0)) == "flex_attention"
    q = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="passes softcap to its attention"):
        packed_attention_forward(torch.nn.Module(), q, q, q, None, softcap=50.0)


def test_layers_that_are_neither_full_nor_sliding_are_refused_in_packed_rows():
    assert layer_windows(SimpleNamespace(sliding_window=4)) == {"every_layer": 4}
    assert layer_windows(SimpleNamespace()) == {"every_layer": None}
    with pytest.raises(ValueError, match="'chunked_attention'; use padded rows"):
        layer_windows(SimpleNamespace(model_type="llama4_text", layer_types=["full_attention", "chunked_attention"]))


# ---- Mixtral ----


def mixtral(coefficient: float = 0.3) -> Any:
    config = tiny_config("mixtral")
    config["llm_cfg"] |= {"output_router_logits": True, "router_aux_loss_coef": coefficient}
    torch.manual_seed(0)
    return build_model(config)


def test_the_router_loss_is_named_and_is_transformers_own():
    model, rows = mixtral(), text(12, 7)
    ids, mask = padded(rows), mask_of(rows)
    labels = ids.masked_fill(mask == 0, IGNORE_INDEX)
    found, expected = model(ids, attention_mask=mask, labels=labels), theirs(model)(ids, mask, labels=labels)
    assert set(found.loss_terms) == {"main_loss", "router_loss"}
    assert worst(found.loss_terms["router_loss"], expected.aux_loss) < 1e-6
    assert worst(found.loss.detach(), expected.loss.detach()) < 1e-6
    assert found.loss.item() == pytest.approx(
        found.loss_terms["main_loss"].item() + 0.3 * found.loss_terms["router_loss"].item(), rel=1e-6
    )


def test_the_router_loss_of_packed_rows_leaves_padding_out():
    model, rows = mixtral(), text(12, 7)
    ids, mask = padded(rows), mask_of(rows)
    apart = model(ids, attention_mask=mask, labels=ids).loss_terms["router_loss"]
    batch = packed(rows, padding=5)
    together = model(**batch, labels=batch["input_ids"]).loss_terms["router_loss"]
    assert worst(together, apart) < 1e-6


def test_the_router_loss_counts_by_the_share_of_supervised_tokens():
    model, ids = mixtral().train(), torch.stack(text(9))
    whole = model(ids, labels=ids)
    half = model(ids, labels=ids, num_items_in_batch=16)
    assert half.loss.item() == pytest.approx(whole.loss.item() / 2, rel=1e-6)
    assert half.loss_terms["router_loss"].item() == pytest.approx(whole.loss_terms["router_loss"].item() / 2, rel=1e-6)


def test_the_router_is_trained_by_its_loss_also_under_gradient_checkpointing():
    model, ids, found = mixtral(10.0).train(), torch.stack(text(9)), []
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.llm.named_parameters() if "gate.weight" in name})
    assert len(found[0]) == 2
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0
        assert worst(found[1][name], gradient) < 1e-6


def test_without_the_switch_there_is_no_router_loss():
    model, ids = tiny_model("mixtral"), torch.stack(text(5))
    assert set(model(ids, labels=ids).loss_terms) == {"main_loss"}


# ---- the recipe ----


def test_the_recipe_of_the_readme_adds_a_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LANGUAGE_MODELS, "_rows", dict(LANGUAGE_MODELS._rows))
    readme = Path(llava.__file__).parent / "model" / "README.md"
    (recipe,) = re.findall(r"^```python\n(.*?)^```", readme.read_text(), flags=re.DOTALL | re.MULTILINE)
    config = tiny_config()
    config["llm_cfg"] |= {"model_type": "olmo2", "num_key_value_heads": 2}
    with pytest.raises(ValueError, match="unknown language model 'olmo2'"):
        build_model(config)
    names: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(recipe, str(readme), "exec"), names)
    torch.manual_seed(0)
    model, ids, images = build_model(config).eval(), torch.tensor([[1, -200, 5, 6, 7]]), pictures(1)
    assert type(model) is names["LlavaOlmo2Model"]
    with torch.no_grad():
        assert worst(model(ids[:, 2:]).logits, theirs(model)(ids[:, 2:]).logits) < TOLERANCE
    model.save_pretrained(tmp_path)
    for again in (llava.load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert type(again) is type(model)
        with torch.no_grad():
            assert torch.equal(model(ids, images).logits, again(ids, images).logits)
