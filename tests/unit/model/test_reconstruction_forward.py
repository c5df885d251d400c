"""The next-frame loss inside the model's forward pass: what it adds, what it must not touch, what it may see."""

from __future__ import annotations

import pytest
import torch

from llava.data.collate import DataCollator
from llava.model.autoregressive_reconstruction.batches import items_of_batch, reconstruct
from tests.unit.train.toy import IMAGE_TOKEN, ToyClips, ToyData, toy_model

SETTINGS = {"embedding_dim": None, "predictor_dim": 16, "num_heads": 2, "num_layers": 2}


def learner(*, tuned_tower: bool = True, **settings):
    model = toy_model()
    model.set_trainable(language_model=True, vision_tower=tuned_tower, mm_projector=True)
    model.initialize_continuous_autoregressive_modules({**SETTINGS, **settings})
    torch.manual_seed(1)
    for name, weight in model.autoregressive_reconstruction.named_parameters():
        if "output_projection.weight" in name:  # zero at the start: nothing would reach what lies before
            torch.nn.init.normal_(weight, std=0.1)
    return model.train()


def batch_of(indices, *, mode: str = "pad", data=None):
    data = data or ToyClips(16)
    collator = DataCollator(pad_token_id=0, max_length=256, mode=mode, rows="one", image_token_id=IMAGE_TOKEN)
    return collator([data[i] for i in indices])


def run(model, batch, **more):
    return model(**{key: value for key, value in batch.items() if key != "sample_ids"}, **more)


def gradients(model) -> dict[str, torch.Tensor | None]:
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def test_the_loss_is_the_main_loss_plus_the_weighted_one():
    model = learner(loss_weight=0.25)
    output = run(model, batch_of([0, 1, 2]))
    main, auxiliary = output.loss_terms["main_loss"], output.loss_terms["autoregressive_loss"]
    assert float(auxiliary) > 0
    assert output.loss.item() == pytest.approx(float(main + 0.25 * auxiliary), rel=1e-6)
    assert float(output.reconstruction.skill.num_items) == 1 + 2 + 3  # clips of 2, 3 and 4 frames


def test_the_weight_of_a_call_replaces_the_configured_one():
    model, batch = learner(loss_weight=0.25), batch_of([0, 1])
    output = run(model, batch, autoregressive_weight=0.0)
    assert float(output.loss) == float(output.loss_terms["main_loss"])


def test_an_auxiliary_only_stage_leaves_the_main_loss_out():
    model = learner(loss_weight=0.5, auxiliary_only=True)
    output = run(model, batch_of([1]))
    assert float(output.loss) == pytest.approx(0.5 * float(output.loss_terms["autoregressive_loss"]), rel=1e-6)


def test_logits_are_bit_equal_with_and_without_the_modules():
    with_it, without, batch = learner().eval(), toy_model().eval(), batch_of([0, 1, 2])
    known = {key: value for key, value in batch.items() if key not in ("labels", "clips", "sample_ids")}
    assert torch.equal(with_it(**known).logits, without(**known).logits)
    asked = {"input_ids": batch["input_ids"][:1, :12], "images": batch["images"][:2], "max_new_tokens": 8}
    assert torch.equal(with_it.generate(**asked, do_sample=False), without.generate(**asked, do_sample=False))


def test_the_policy_is_computed_as_without_the_loss():
    """No token was added for the loss: the main loss of a training pass is the same to the bit."""
    batch = batch_of([0, 1, 2], mode="pack")
    plain = toy_model().train()
    plain.set_trainable(language_model=True, vision_tower=True, mm_projector=True)
    expected = run(plain, {k: v for k, v in batch.items() if k != "clips"}).loss_terms["main_loss"]
    for site, told in (("visual", "none"), ("visual", "history"), ("answer", "answer"), ("both", "answer")):
        found = run(learner(site=site, condition_on_action=told), batch).loss_terms["main_loss"]
        assert torch.equal(found, expected)


@pytest.mark.parametrize("site", ["visual", "answer", "both"])
def test_packed_and_padded_rows_give_the_same_loss(site):
    model = learner(site=site)
    padded, packed = (run(model, batch_of([0, 1, 2, 4], mode=mode)) for mode in ("pad", "pack"))
    a, b = (float(output.loss_terms["autoregressive_loss"]) for output in (padded, packed))
    assert a == pytest.approx(b, rel=1e-5)


def test_a_frozen_tower_is_its_own_teacher_and_runs_once():
    model = learner(tuned_tower=False)
    calls = []
    model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    shared = run(model, batch_of([0, 1, 2]))
    assert len(calls) == 1
    batch = batch_of([0, 1, 2])
    pixels = batch["images"][batch["clips"]["frames"].clamp(min=0)]
    module, states = model.autoregressive_reconstruction, []
    model.llm.get_decoder().register_forward_hook(lambda _m, _i, output: states.append(output.last_hidden_state))
    run(model, batch)
    clips = {key: value for key, value in batch["clips"].items() if key != "frames"}
    clips["is_real"] = batch["clips"]["frames"] >= 0
    apart = reconstruct(module, states[0], video_frames=pixels, clips=clips)
    assert float(shared.loss_terms["autoregressive_loss"]) == pytest.approx(float(apart.loss()), rel=1e-6)


def test_a_tuned_tower_has_a_teacher_that_stays_as_it_was():
    model = learner()
    before = run(model, batch_of([1])).reconstruction.skill.copy_squared_error
    with torch.no_grad():
        for weight in model.vision_tower.parameters():
            weight.mul_(1.5)
    after = run(model, batch_of([1])).reconstruction.skill.copy_squared_error
    assert torch.equal(before, after)
    assert not any("teacher" in name for name in model.state_dict())


@pytest.mark.parametrize("kind", ["none", "some"])
def test_samples_without_a_clip_reach_every_weight_with_a_zero(kind):
    model = learner()
    batch = batch_of([0, 1], data=ToyData(4)) if kind == "none" else batch_of([0, 3], data=ToyClips(8, blank=3))
    output = run(model, batch)
    assert float(output.loss_terms["autoregressive_loss"]) == 0
    output.loss.backward()
    weights = dict(model.autoregressive_reconstruction.named_parameters())
    assert all(weight.grad is not None and not weight.grad.any() for weight in weights.values())


def test_gradients_reach_the_language_model_and_the_live_tower():
    model = learner(auxiliary_only=True)
    run(model, batch_of([1, 2])).loss.backward()
    reached = {name.split(".")[0] for name, grad in gradients(model).items() if grad is not None and grad.any()}
    assert reached == {"llm", "vision_tower", "mm_projector", "autoregressive_reconstruction"}


def test_items_are_counted_from_the_batch_alone():
    model = learner(site="both")
    for indices in ([0], [0, 1, 2], [5, 8]):
        batch = batch_of(indices)
        output = run(model, batch)
        assert (
            items_of_batch(batch, model.autoregressive_reconstruction.config) == output.reconstruction.skill.num_items
        )


def test_skill_is_told_by_motion():
    output = run(learner(), batch_of([2]))  # 4 frames: ahead, turn, ahead
    counts = {name: float(skill.num_items) for name, skill in output.reconstruction.by_motion.items()}
    assert counts == {"forward": 2, "turn": 1, "both": 0, "still": 0}


@pytest.mark.parametrize("mode", ["pad", "pack"])
@pytest.mark.parametrize("site", ["visual", "answer"])
def test_no_prediction_depends_on_a_later_picture_through_the_whole_model(site, mode):
    """The gradient of the prediction made at frame t is exactly 0 for every picture after t, and not before."""
    model = learner(site=site)
    batch = batch_of([2, 5], mode=mode)
    size = batch["images"].shape[0]
    images = torch.randn(size, 3, 16, 16, requires_grad=True)
    states = []
    hook = model.llm.get_decoder().register_forward_hook(lambda _m, _i, out: states.append(out.last_hidden_state))
    run(model, {**batch, "images": images})
    hook.remove()
    segments = batch["segment_ids"].masked_fill(~batch["attention_mask"], -1)
    found = reconstruct(
        model.autoregressive_reconstruction, states[0], images=images, clips=batch["clips"],
        segment_ids=segments, branch_ids=batch["branch_ids"],
    )  # fmt: skip
    prediction = found.sites[site]
    frames = batch["clips"]["frames"]
    num_checked = 0
    for clip in range(2):
        for query, t in enumerate(prediction.plan.clips.indices.tolist()):
            if not prediction.plan.is_item[clip, query]:
                continue
            change = prediction.predicted[clip, query] - prediction.current[clip, query]
            (grad,) = torch.autograd.grad(change.square().sum(), images, retain_graph=True)
            reached = set(grad.flatten(1).abs().sum(dim=1).nonzero()[:, 0].tolist())
            may = {int(frames[clip, u]) for u in range(t + 1)}
            assert reached <= may
            assert int(frames[clip, t]) in reached
            num_checked += 1
    assert num_checked == 3 + 3


def test_the_modules_are_added_once():
    model = learner()
    first = model.autoregressive_reconstruction
    assert model.initialize_continuous_autoregressive_modules(SETTINGS) is first
    assert model.initialize_continuous_autoregressive_modules() is first
    with pytest.raises(ValueError, match="build the model again"):
        model.initialize_continuous_autoregressive_modules({**SETTINGS, "num_hist": 7})


def test_what_is_drawn_later_is_the_same_with_and_without_the_modules():
    torch.manual_seed(5)
    plain = toy_model()
    expected = torch.rand(4)
    torch.manual_seed(5)
    model = toy_model()
    model.initialize_continuous_autoregressive_modules(SETTINGS)
    assert torch.equal(torch.rand(4), expected)
    assert plain.config.reconstruction is None and model.config.reconstruction["num_layers"] == 2


def test_without_settings_there_is_nothing_to_add():
    with pytest.raises(ValueError, match="give a dict of keys"):
        toy_model().initialize_continuous_autoregressive_modules()


def test_another_layer_can_be_read():
    last, first = (run(learner(aux_layer=layer), batch_of([2])) for layer in (-1, 0))
    assert float(last.loss_terms["autoregressive_loss"]) != float(first.loss_terms["autoregressive_loss"])
    with pytest.raises(ValueError, match=r"aux_layer is 9, the language model has hidden states -3\.\.2"):
        run(learner(aux_layer=9), batch_of([2]))


def test_the_documented_batch_carries_whole_clips():
    model = learner()
    batch = {**batch_of([0, 1]), "video_frames": torch.randint(0, 256, (2, 5, 3, 16, 16), dtype=torch.uint8)}
    del batch["clips"]
    output = run(model, batch)
    assert float(output.reconstruction.skill.num_items) == 2 * 4
    output.loss.backward()
    assert all(p.grad is not None for p in model.autoregressive_reconstruction.parameters())
