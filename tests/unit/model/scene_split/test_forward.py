"""The split inside a whole model: slots, positions, labels, losses, gradients, checkpoints."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from llava.constants import IGNORE_INDEX
from llava.model.builder import load_pretrained_model
from llava.model.media_embedding import TokenRows
from llava.model.multimodal_projector.prefusion import BACKGROUND, OBJECT, OUTSIDE
from llava.model.multimodal_projector.prefusion import TEXT as TEXT_KIND
from llava.model.scene_split.embedding import embed_rows, layout_rule_of
from llava.model.scene_split.layout import layout_clip, layout_picture
from llava.model.scene_split.rows import find_pictures, lay_out_rows
from llava.model.scene_split.separators import Separators
from tests.unit.model.scene_split.model_toy import (
    ANSWER,
    EVERYTHING,
    NOTHING,
    QUARTER,
    TEXT,
    make_model,
    packed,
    padded,
    pixels,
    row,
)
from tests.unit.model.scene_split.toy import worst

OWN_PARTS = {"shared_projectors": False, "shared_encoder": False, "prefusion_layers": 1}


def places(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def laid_out(model, rows: TokenRows, objects: list[Tensor], *, is_clip: bool = False):
    """Rows of pictures of four tokens, from the places of their objects."""
    rule = layout_rule_of(model)
    found = find_pictures(rows, rule, is_clip=is_clip)
    backgrounds = [places(*sorted(set(range(4)) - set(each.tolist()))) for each in objects]
    if is_clip:
        layouts = layout_clip(rule, backgrounds[:1], objects)
    else:
        layouts = [layout_picture(rule, *each) for each in zip(backgrounds, objects, strict=True)]
    return lay_out_rows(rows, rule, found, layouts)


# ---- slots, labels, positions ----


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        # [1 5 6] BG a b c BG OBJ d OBJ [7 8 9]; places 1 2 3 are background, place 0 is an object
        ("in_place", [0, 1, 2, 3, 6, 7, 8, 9, 4, 5, 10, 11, 12, 13]),
        ("own_range", [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17]),
        ("sequential", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]),
    ],
)
def test_a_row_by_hand(positions, expected):
    model = make_model({"positions": positions})
    ids, labels = row(model, TEXT, 0, ANSWER)
    split = laid_out(model, TokenRows(input_ids=ids[None], labels=labels[None]), [places(0)])
    tokens, image = Separators.of(model.tokenizer), model.image_token_id
    picture = [tokens.background_start, image, image, image, tokens.background_end]
    picture += [tokens.objects_start, image, tokens.objects_end]
    assert split.rows.input_ids[0].tolist() == [*TEXT, *picture, *ANSWER]
    assert split.rows.labels is not None and split.rows.labels[0].tolist() == [IGNORE_INDEX] * 11 + ANSWER
    assert split.rows.position_ids is not None and split.rows.position_ids[0].tolist() == expected
    kinds = [TEXT_KIND] * 4 + [BACKGROUND] * 3 + [TEXT_KIND] * 2 + [OBJECT, TEXT_KIND] + [OUTSIDE] * 3
    assert split.plan.kinds[0].tolist() == kinds


def test_a_wider_picture_moves_only_what_comes_later_in_its_own_sample():
    model = make_model({"positions": "own_range"})  # takes 12 positions in 8 slots
    batch = packed([row(model, TEXT, 0, ANSWER), row(model, TEXT, ANSWER), row(model, 0, TEXT, 0, ANSWER)])
    rows = TokenRows(input_ids=batch["input_ids"], segment_ids=batch["segment_ids"])
    split = laid_out(model, rows, [places(0), places(), places(0, 1, 2, 3)])
    assert split.rows.position_ids is not None
    text = split.rows.position_ids[0][~(split.is_visual[0] | _is_separator(model, split.rows.input_ids[0]))]
    assert text.tolist() == [0, 1, 2, 15, 16, 17, *range(6), 12, 13, 14, 27, 28, 29]


def _is_separator(model, ids: Tensor) -> Tensor:
    tokens = Separators.of(model.tokenizer)
    known = [tokens.background_start, tokens.background_end, tokens.objects_start, tokens.objects_end]
    return torch.isin(ids, torch.tensor(known))


def test_an_aside_that_hangs_before_a_picture_stays_where_it_is():
    model = make_model({"positions": "own_range"})
    slots = model.slots_per_image
    ids = torch.tensor([[1, 5, 6, 7, *[model.image_token_id] * slots, 8]])
    branches = torch.tensor([[0, 1, 1, 1, *[0] * slots, 0]])  # its positions 1 2 3 lie behind the picture's first, 1
    rows = TokenRows(input_ids=ids, segment_ids=torch.zeros_like(ids), branch_ids=branches)
    split = laid_out(model, rows, [places(0)])
    assert split.rows.position_ids is not None
    assert split.rows.position_ids[0].tolist() == [0, 1, 2, 3, 1, 3, 4, 5, 6, 7, 8, 12, 13]


def test_later_frames_of_a_clip_leave_no_gaps():
    model = make_model({"background_per": "clip"})
    ids, labels = row(model, 0, TEXT, 0, ANSWER)
    other = row(model, TEXT, ANSWER)
    batch = padded([(ids, labels), other])
    rows = TokenRows(**{name: batch[name] for name in ("input_ids", "labels", "segment_ids")})
    split = laid_out(model, rows, [places(0), places(1, 2)], is_clip=True)
    assert split.rows.input_ids.shape == (2, 8 + 3 + 4 + 3)  # the second frame: two objects between two separators
    assert split.rows.labels is not None and split.rows.segment_ids is not None
    assert split.rows.labels[0].tolist() == [IGNORE_INDEX] * 15 + ANSWER
    assert split.rows.segment_ids[1].tolist() == [0] * 6 + [-1] * 12
    assert split.rows.position_ids is not None and split.rows.position_ids[0, -3:].tolist() == [19, 20, 21]
    assert split.plan.frame_ids[0][split.is_visual[0]].tolist() == [0, 0, 0, 0, 1, 1]


# ---- off means off ----


def test_without_the_split_nothing_is_different():
    off, on = make_model(), make_model()
    on.load_state_dict(off.state_dict())
    on.initialize_scene_split({})
    assert off.scene_split is None and off.slots_per_image == 4 and on.slots_per_image == 8
    assert off.visual_spec.tokens_per_image == 4 and on.visual_spec.tokens_per_image == 8
    assert off.config.visual_spec().tokens_per_image == 4 and on.config.visual_spec().tokens_per_image == 8
    assert off.llm.config.vocab_size == 24 and not any(name.startswith("scene_split") for name in off.state_dict())
    assert torch.equal(off.vision_tower(pixels(1)), on.vision_tower(pixels(1)))
    ids, labels = row(off, TEXT, 0, ANSWER)
    expected = off.llm(inputs_embeds=_spliced(off, ids[None], pixels(1))).logits
    found = off(input_ids=ids[None], images=pixels(1), labels=labels[None])
    assert torch.equal(found.logits, expected)


def _spliced(model, ids: Tensor, images: Tensor) -> Tensor:
    is_image = ids == model.image_token_id
    embeds = model.llm.get_input_embeddings()(ids.masked_fill(is_image, 0))
    embeds[is_image] = model.encode_images(images).flatten(0, 1)
    return embeds


def test_object_masks_for_a_model_that_does_not_split_are_refused():
    model = make_model()
    ids, labels = row(model, TEXT, 0, ANSWER)
    with pytest.raises(ValueError, match="model without scene_split"):
        model(input_ids=ids[None], images=pixels(1), labels=labels[None], object_patches=QUARTER)


# ---- losses ----


def _batches(model) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]:
    rows = [row(model, TEXT, 0, ANSWER), row(model, TEXT, 0, [5], 0, ANSWER), row(model, TEXT, ANSWER)]
    return rows, pixels(3), torch.cat([QUARTER, NOTHING, EVERYTHING])


@pytest.mark.parametrize("split", [{}, OWN_PARTS, {"positions": "own_range"}, {"background_per": "clip"}])
def test_padded_and_packed_rows_have_one_loss_whatever_their_order(split):
    model = make_model(split)
    rows, images, masks = _batches(model)
    given = {"images": images, "object_patches": masks}
    first = model(**padded(rows), **given).loss
    order = [1, 2, 0]
    other = {"images": images[[1, 2, 0]], "object_patches": masks[[1, 2, 0]]}
    found = [model(**packed(rows), **given).loss, model(**padded([rows[i] for i in order]), **other).loss]
    assert torch.isfinite(first)
    assert [float(loss.detach()) for loss in found] == pytest.approx([float(first.detach())] * 2, abs=1e-5)
    train = model.train()(**packed(rows), **given).loss  # one pass per tower instead of one per background
    assert float(train.detach()) == pytest.approx(float(first.detach()), abs=1e-5)


def test_placeholders_may_be_multiplied_by_the_model():
    model = make_model({"positions": "own_range"})
    ids, labels = row(model, TEXT, 0, ANSWER)
    expanded = model(input_ids=ids[None], labels=labels[None], images=pixels(1), object_patches=QUARTER)
    single = torch.tensor([[*TEXT, model.image_token_id, *ANSWER]])
    answer = torch.tensor([[IGNORE_INDEX] * 4 + ANSWER])
    found = model(input_ids=single, labels=answer, images=pixels(1), object_patches=QUARTER)
    assert worst(found.logits, expanded.logits) < 1e-6 and torch.equal(found.loss, expanded.loss)
    given = model.prepare_inputs_labels_for_multimodal(
        single, single, None, None, answer, pixels(1), padding_side="left", object_patches=QUARTER
    )
    assert given[1] is not None and given[1][0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17]


def test_no_mask_means_that_nothing_was_found():
    model = make_model({})
    ids, labels = row(model, TEXT, 0, ANSWER)
    given = {"input_ids": ids[None], "labels": labels[None], "images": pixels(1)}
    assert torch.equal(model(**given).logits, model(**given, object_patches=NOTHING).logits)


def test_own_parts_begin_as_the_shared_ones():
    torch.manual_seed(3)
    whole = make_model()
    own = make_model()
    own.load_state_dict(whole.state_dict())
    whole.initialize_scene_split({})
    own.initialize_scene_split(OWN_PARTS)
    ids, labels = row(whole, TEXT, 0, ANSWER)
    given = {"input_ids": ids[None], "labels": labels[None], "images": pixels(1), "object_patches": QUARTER}
    assert worst(whole(**given).logits, own(**given).logits) < 1e-6


def test_the_background_has_the_same_bits_whatever_the_objects_look_like():
    model = make_model({"shared_projectors": False}).to(torch.bfloat16)
    ids, _ = row(model, TEXT, 0, ANSWER)
    images = pixels(1)
    changed = images.clone()
    changed[:, :, :8, :8] = pixels(1, seed=9)[:, :, :8, :8]  # the object patches of QUARTER
    rows = TokenRows(input_ids=ids[None])
    first, second = (embed_rows(model, rows, each, QUARTER)[0][0] for each in (images, changed))
    background, objects = slice(0, 8), slice(9, 10)
    assert torch.equal(first[background], second[background]) and not torch.equal(first[objects], second[objects])


# ---- gradients ----


@pytest.mark.parametrize("split", [{}, OWN_PARTS, {"background_per": "clip", "shared_encoder": False}])
@pytest.mark.parametrize("masks", [NOTHING, QUARTER, EVERYTHING, None], ids=["background", "both", "objects", "text"])
def test_every_trained_weight_is_reached_whatever_a_batch_holds(split, masks):
    model = make_model(split).train()
    model.set_trainable(language_model=True, vision_tower=True, mm_projector=True)
    rows = [row(model, TEXT, 0, ANSWER)] if masks is not None else [row(model, TEXT, ANSWER)]
    given = {} if masks is None else {"images": pixels(1), "object_patches": masks}
    model(**packed(rows), **given).loss.backward()
    lacking = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert lacking == []
    if split == OWN_PARTS:
        assert not any(p.requires_grad for p in model.mm_projector.parameters())  # nothing reaches it


def test_recomputed_activations_give_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        model = make_model({"shared_encoder": False}).train()
        if recompute:
            model.gradient_checkpointing_enable()
        rows, images, masks = _batches(model)
        model(**packed(rows), images=images, object_patches=masks).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(worst(gradients[0][name], gradients[1][name]) < 1e-6 for name in gradients[0])


@pytest.mark.parametrize(("groups", "length"), [("background", 3 + 7 + 3), ("objects", 3 + 5 + 3)])
def test_a_stage_can_show_one_group_only(groups, length):
    model = make_model({"shared_projectors": False}).train()
    assert model.scene_split is not None
    model.scene_split.groups = groups
    batch = packed([row(model, TEXT, 0, ANSWER)])
    rows = TokenRows(input_ids=batch["input_ids"], labels=batch["labels"], segment_ids=batch["segment_ids"])
    embeds, shown = embed_rows(model, rows, pixels(1), QUARTER)
    assert embeds.shape[1] == length and shown.position_ids is not None
    assert shown.position_ids[0, -3:].tolist() == [11, 12, 13]
    model(**batch, images=pixels(1), object_patches=QUARTER).loss.backward()
    other = {"background": "object_projector", "objects": "background_projector"}[groups]
    silent = [p.grad for p in getattr(model.scene_split, other).parameters()]
    assert all(grad is not None and not grad.any() for grad in silent)


# ---- set up ----


def test_it_is_added_once_with_one_set_of_settings():
    model = make_model()
    drawn = torch.random.get_rng_state()
    module = model.initialize_scene_split({"prefusion_layers": 1})
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert model.initialize_scene_split({"prefusion_layers": 1}) is module
    assert model.initialize_scene_split() is module
    assert model.config.llm_cfg["vocab_size"] == len(model.tokenizer) == model.llm.config.vocab_size
    with pytest.raises(ValueError, match="the split is there with"):
        model.initialize_scene_split({})


def test_models_that_cannot_be_split_are_refused():
    with pytest.raises(ValueError, match="no settings of the background/object split"):
        make_model().initialize_scene_split()
    with pytest.raises(ValueError, match="image_aspect_ratio is 'anyres'"):
        make_model(image_aspect_ratio="anyres", image_grid_pinpoints=[[16, 32]]).initialize_scene_split({})
    without = make_model()
    without.tokenizer = None
    with pytest.raises(ValueError, match="the model has no tokenizer"):
        without.initialize_scene_split({})
    learns = make_model()
    learns.initialize_continuous_autoregressive_modules(
        {"embedding_dim": None, "predictor_dim": 16, "num_heads": 2, "num_layers": 1}
    )
    with pytest.raises(ValueError, match="next-frame loss are both asked for"):
        learns.initialize_scene_split({})
    with pytest.raises(ValueError, match="the model has scene_split"):
        make_model({}).initialize_continuous_autoregressive_modules({"embedding_dim": None})


def test_only_settings_that_need_no_other_weights_can_change():
    model = make_model({"dilation": 1})
    assert model.scene_split is not None
    model.scene_split.reconfigure({"positions": "sequential"})
    assert model.scene_split.config.positions == "sequential" and model.scene_split.config.dilation == 1
    with pytest.raises(ValueError, match="prefusion_layers is 2, the model was built with 0"):
        model.scene_split.reconfigure({"prefusion_layers": 2})
    with pytest.raises(ValueError, match="object_projector is to be trained and the model shares it"):
        model.set_trainable(language_model=True, vision_tower=True, mm_projector=True, object_projector=True)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.zeros(1, 9, dtype=torch.bool), r"object_patches are \[1, 9\], expected \[1, 16\]"),
        (torch.zeros(2, 16, dtype=torch.bool), r"object_patches are \[2, 16\], expected \[1, 16\]"),
        (torch.arange(16)[None] == 0, "cuts through the cell in row 0, column 0"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, message):
    model = make_model({})
    ids, labels = row(model, TEXT, 0, ANSWER)
    with pytest.raises(ValueError, match=message):
        model(input_ids=ids[None], images=pixels(1), labels=labels[None], object_patches=masks)


def test_rows_that_cannot_be_laid_out_are_refused():
    model = make_model({"prefusion_layers": 1})
    slots = [model.image_token_id] * 8
    apart = torch.tensor([[1, *slots[:4], 5, *slots[4:], 6]])
    with pytest.raises(ValueError, match="slots that do not stand together, expected 8 in a run"):
        model(input_ids=apart, images=pixels(1))
    ids = torch.tensor([[1, *slots, 5, 6]])
    branches = torch.tensor([[0] * 9 + [1, 1]])
    with pytest.raises(ValueError, match="prefusion_layers, which cannot keep them apart"):
        model(input_ids=ids, images=pixels(1), segment_ids=torch.zeros_like(ids), branch_ids=branches)


# ---- checkpoints ----


@pytest.mark.parametrize("split", [{}, OWN_PARTS])
def test_a_saved_model_comes_back_with_equal_logits(split, tmp_path):
    model = make_model(split)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "scene_split" / "model.safetensors").is_file() == bool(split)
    _, again, *_ = load_pretrained_model(str(tmp_path), device="cpu")
    ids, labels = row(model, TEXT, 0, ANSWER)
    given = {"input_ids": ids[None], "labels": labels[None], "images": pixels(1), "object_patches": QUARTER}
    assert torch.equal(model(**given).logits, again(**given).logits)
    assert again.config.scene_split == model.config.scene_split
    assert again.state_dict().keys() == model.state_dict().keys()


def test_folders_that_lost_something_of_the_split_are_refused(tmp_path):
    model = make_model(OWN_PARTS)
    model.save_pretrained(tmp_path)
    (tmp_path / "scene_split" / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ValueError, match="expected the weights of scene_split"):
        load_pretrained_model(str(tmp_path), device="cpu")
    make_model().tokenizer.save_pretrained(tmp_path / "llm")  # a tokenizer without the separators
    with pytest.raises(ValueError, match=r"the tokenizer has no token \[BG_START\]"):
        load_pretrained_model(str(tmp_path), device="cpu")


def test_gathered_weights_must_hold_those_of_the_split(tmp_path):
    model = make_model(OWN_PARTS)
    state = {name: value for name, value in model.state_dict().items() if "object_projector" not in name}
    with pytest.raises(ValueError, match=r"lack object_projector\.\S+ of scene_split"):
        model.save_pretrained(tmp_path, state_dict=state)
    assert json.loads((tmp_path / "config.json").read_text())["scene_split"]["prefusion_layers"] == 1


def test_transformers_own_llava_cannot_hold_it(tmp_path):
    from llava.model.checkpoints.export import export_llava_hf

    with pytest.raises(ValueError, match="reads pictures in two groups"):
        export_llava_hf(make_model({}), tmp_path)
