"""Surprise at inference: which frame it names, that it is the loss of the training, what it must not touch."""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

import llava
from llava.data.clips import make_clip
from llava.data.collate import DataCollator
from llava.data.preprocess import lay_out_pieces
from llava.model.autoregressive_reconstruction.batches import reconstruct
from llava.model.autoregressive_reconstruction.surprise import clip_errors, plan_windows
from llava.model.autoregressive_reconstruction.surprise_input import SequenceLayout, read_clips
from llava.model.builder import load_pretrained_model
from llava.model.checkpoints import autoregressive
from llava.model.generation import encode_prompt
from llava.navigation.actions import STOP, Action, ActionKind
from llava.navigation.prompt import NavilaFormat, Step, StreamingFormat
from tests.unit.model.autoregressive_reconstruction.surprise_toy import (
    JUMP,
    SIDE,
    jumping_disc,
    learner,
    make_model,
    make_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


# ---- what it tells ----


@pytest.mark.parametrize("context", ["none", "language"])
def test_the_frame_to_which_the_disc_jumps_is_the_most_surprising(tokenizer, context):
    model = learner(make_model(tokenizer), copies=True)
    surprise = model.frame_surprise(jumping_disc(), context=context)
    assert surprise.shape == (1, 8)
    assert surprise[0, 0].isnan() and not surprise[0, 1:].isnan().any()
    assert int(surprise[0].nan_to_num(-1).argmax()) == JUMP


def test_a_predictor_that_copies_is_surprised_by_the_change_of_the_features():
    model, clip = learner(make_model(), copies=True), jumping_disc()
    features = torch.nn.functional.layer_norm(model.vision_tower(clip).detach(), (16,))  # the targets, [T, 16, 16]
    change = (features[1:] - features[:-1]).square()
    found = clip_errors(model, clip, context="none")
    assert torch.allclose(found.surprise[0, 1:], change.mean(dim=(1, 2)), atol=1e-5)
    assert torch.allclose(found.predicted[0, 1:], change.mean(dim=2), atol=1e-5)
    assert torch.equal(found.predicted[0, 1:], found.copied[0, 1:])
    still = clip_errors(model, clip[:1].expand(4, -1, -1, -1), context="none")
    assert still.surprise[0, 1:].tolist() == [0, 0, 0]


def test_clips_of_a_batch_are_told_apart():
    model = learner(make_model())
    first, second = jumping_disc(6), jumping_disc(6, jump=2)
    both = model.frame_surprise(torch.stack([first, second]), context="none")
    for row, clip in zip(both, (first, second), strict=True):
        alone = model.frame_surprise(clip, context="none")[0]
        assert torch.allclose(row, alone, atol=1e-5, equal_nan=True)
    assert not torch.allclose(both[0, 1:], both[1, 1:])


@pytest.mark.parametrize("context", ["none", "language"])
def test_no_later_frame_changes_the_surprise_of_an_earlier_one(tokenizer, context):
    model, clip = learner(make_model(tokenizer)), jumping_disc(4)
    other = torch.cat([clip[:3], 255 - clip[3:]])
    before, after = (model.frame_surprise(frames, "What moves?", context=context)[0] for frames in (clip, other))
    assert torch.allclose(before[1:3], after[1:3], atol=1e-6)
    assert before[3] != after[3]


def test_what_the_language_model_saw_and_read_before_a_frame_counts(tokenizer):
    model = learner(make_model(tokenizer, prompt=StreamingFormat().to_config()))
    clip = jumping_disc(4)
    told = [model.frame_surprise(clip, prompt)[0, 1:] for prompt in (None, "Go to the blue box.")]
    alone = model.frame_surprise(clip, context="none")[0, 1:]
    assert not torch.allclose(told[0], told[1]) and not torch.allclose(told[0], alone)


# ---- that it is the training's ----


def train_surprise(model, sample, *, images: torch.Tensor) -> torch.Tensor:
    """Of one sample in a training pass, by the batch and the states that the loss sees."""
    collator = DataCollator(pad_token_id=0, max_length=512, image_token_id=model.config.image_token_id)
    batch, states = collator([{**sample, "images": images, "sample_id": "one"}]), []
    hook = model.llm.get_decoder().register_forward_hook(lambda _m, _i, out: states.append(out.last_hidden_state))
    model.train()
    output = model(**{key: value for key, value in batch.items() if key != "sample_ids"})
    model.eval()
    hook.remove()
    segments = batch.get("segment_ids")
    if segments is not None and "attention_mask" in batch:
        segments = segments.masked_fill(~batch["attention_mask"].bool(), -1)
    with torch.no_grad():
        found = reconstruct(
            model.autoregressive_reconstruction, states[0], images=batch["images"], clips=batch["clips"],
            segment_ids=segments, branch_ids=batch.get("branch_ids"),
        )  # fmt: skip
    assert float(found.loss()) == pytest.approx(float(output.loss_terms["autoregressive_loss"]), rel=1e-5)
    return found.surprise(batch["clips"]["frames"].shape[1])


@pytest.mark.parametrize("settings", [{}, {"condition_on_action": "history"}, {"site": "both", "aux_layer": -1}])
@pytest.mark.parametrize("tuned_tower", [False, True])
def test_surprise_is_the_loss_of_the_training_on_the_same_walk(tokenizer, settings, tuned_tower):
    prompt = StreamingFormat()
    model = learner(make_model(tokenizer, prompt=prompt.to_config()), tuned_tower=tuned_tower, **settings)
    actions = [Action(ActionKind.FORWARD, 3), Action(ActionKind.LEFT, 1), Action(ActionKind.FORWARD, 1), STOP]
    steps = [Step(frame=index, action=action) for index, action in enumerate(actions)]
    sample, ends = lay_out_pieces(prompt.training_pieces("Go to the blue box.", steps), tokenizer, model.visual_spec)
    times = [0.0, 3.0, 4.0, 5.0]
    motions = torch.tensor([[0.75, 0, 3], [0, 15, 1], [0.25, 0, 1], [float("nan")] * 3])
    sample["clip"] = make_clip(range(4), times, motions=motions, answer_ends={0: ends[0], 1: ends[1], 2: ends[2]})
    clip = jumping_disc(4, jump=2)
    expected = train_surprise(model, sample, images=clip)
    found = model.frame_surprise(clip, "Go to the blue box.", times=times, motions=motions)
    assert torch.allclose(found, expected, atol=1e-5, equal_nan=True)


def test_frames_of_a_question_stand_where_generation_puts_them(tokenizer):
    model = make_model(tokenizer)
    sequence = SequenceLayout.of(model, "What moves?").lay_out(4)
    pictures = [Image.fromarray(np.zeros((SIDE, SIDE, 3), dtype=np.uint8))] * 4
    ids, _, _ = encode_prompt(model, [*pictures, "What moves?"])
    shown = [token for token in ids[0].tolist() for _ in range(4 if token == llava.constants.IMAGE_TOKEN_INDEX else 1)]
    shown = [model.config.image_token_id if token == llava.constants.IMAGE_TOKEN_INDEX else token for token in shown]
    assert shown[: len(sequence.ids)] == sequence.ids.tolist()
    assert [sequence.ids[end] for end in sequence.frame_ends] == [model.config.image_token_id] * 4
    assert int(sequence.frame_ends[-1]) == len(sequence.ids) - 1


def test_frames_of_a_navila_prompt_stand_in_its_question(tokenizer):
    model = make_model(tokenizer, prompt=NavilaFormat(num_frames=4).to_config())
    layout = SequenceLayout.of(model, "Walk to the red ball.")
    assert layout.num_shown == 4
    text = tokenizer.decode(layout.unexpanded(3))
    assert text.count("<image>") == 3 and 'Your assigned task is: "Walk to the red ball."' in text


# ---- long clips ----


@pytest.mark.parametrize(("num_frames", "window", "overlap"), [(2, 8, 4), (8, 8, 4), (9, 8, 7), (30, 8, 4), (7, 2, 1)])
def test_windows_cover_a_clip_and_share_the_overlap(num_frames, window, overlap):
    spans = plan_windows(num_frames, window, overlap)
    assert {index for span in spans for index in span} == set(range(num_frames))
    assert all(len(span) == min(window, num_frames) for span in spans)
    assert all(b.start > a.start and a.stop - b.start >= overlap for a, b in pairwise(spans))


def test_windows_do_not_change_what_each_prediction_may_see():
    """A copy depends on one frame only, so that every way of cutting a clip must give the same numbers."""
    model, clip = learner(make_model(), copies=True), jumping_disc(9)
    whole = model.frame_surprise(clip, context="none", window=9)
    for window, overlap in ((4, 2), (5, 1), (2, 1)):
        cut = model.frame_surprise(clip, context="none", window=window, overlap=overlap)
        assert torch.allclose(cut, whole, atol=1e-5, equal_nan=True)


def test_each_frame_is_encoded_once_and_never_by_a_second_tower():
    model, clip = learner(make_model(), copies=True), jumping_disc(9)
    seen = []
    model.vision_tower.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    model.frame_surprise(clip, context="none", window=4, overlap=2)
    assert sum(seen) == 9


def test_windows_are_what_fits_the_context(tokenizer):
    prompt = StreamingFormat().to_config()
    model = learner(make_model(tokenizer, positions=48, prompt=prompt), copies=True)
    layout = SequenceLayout.of(model, "")
    fits = layout.frames_that_fit(model)
    assert len(layout.lay_out(fits).ids) <= 48 < len(layout.lay_out(fits + 1).ids)
    longest = []
    model.llm.get_decoder().register_forward_hook(lambda _m, _i, out: longest.append(out.last_hidden_state.shape[1]))
    surprise = model.frame_surprise(jumping_disc(fits + 5))
    assert len(longest) > 1 and max(longest) <= 48
    assert not surprise[0, 1:].isnan().any()
    with pytest.raises(ValueError, match=f"expected 2 to {fits}, which fit"):
        model.frame_surprise(jumping_disc(fits + 5), window=fits + 1)
    with pytest.raises(ValueError, match="two frames and the prompt take"):
        model.frame_surprise(jumping_disc(), "Go to the blue box. " * 20)


def test_fast_and_slow_frames_tell_the_surprise_of_every_frame_but_the_first():
    settings = {"use_fast_slow_frames": True, "num_fast": 4, "num_slow": 2}
    surprise = learner(make_model(), copies=True, **settings).frame_surprise(jumping_disc(9), context="none")
    assert not surprise[0, 1:].isnan().any() and surprise[0, 0].isnan()


# ---- inputs ----


def test_tensors_pictures_and_videos_are_the_same_clip(tmp_path):
    model, clip = learner(make_model()), jumping_disc(4)
    expected = model.frame_surprise(clip, context="none")
    pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in clip]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"frame_{number}.png")
    for given in (pictures, llava.Video(pictures), llava.Video(tmp_path), [np.asarray(p) for p in pictures]):
        assert torch.equal(model.frame_surprise(given, context="none")[0, 1:], expected[0, 1:])
    larger = clip.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert model.frame_surprise(larger, context="none").shape == (1, 4)


def test_times_change_what_the_predictor_is_told():
    model, clip = learner(make_model()), jumping_disc(4)
    near, far = (model.frame_surprise(clip, context="none", times=[0, n, 2 * n, 3 * n])[0, 1:] for n in (1, 9))
    assert not torch.allclose(near, far)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8), "at least 2 frames"),
        (torch.zeros(4, 3, SIDE, SIDE), "float32"),
        (torch.zeros(4, SIDE, SIDE, dtype=torch.uint8), "expected uint8"),
        (torch.zeros(4, 1, SIDE, SIDE, dtype=torch.uint8), "3 channels"),
        ([], "frames are list"),
        ("walk.mp4", "frames are str"),
    ],
)
def test_what_is_no_clip_is_refused(frames, words):
    with pytest.raises(ValueError, match=words):
        read_clips(frames, make_model().visual_spec)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"times": [0.0, 1.0]}, r"times have the shape \[1, 2\], expected \[1, 4\]"),
        ({"motions": torch.zeros(3, 3)}, "motions has shape"),
        ({"context": "words"}, "context is 'words'"),
        ({"context": "language"}, "no tokenizer"),
        ({"context": "none", "window": 1}, "a window has 1 frames"),
        ({"context": "none", "window": 3, "overlap": 3}, "overlap < window"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        learner(make_model()).frame_surprise(jumping_disc(4), **options)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"site": "answer"}, "trained at site 'answer'"),
        ({"control": "other_clip"}, "an arm of an experiment"),
        ({"use_frame_causal_mask": False}, "an arm of an experiment"),
    ],
)
def test_a_predictor_of_something_else_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        learner(make_model(), **settings).frame_surprise(jumping_disc(4), context="none")


def test_a_predictor_that_never_saw_the_other_context_is_refused():
    for settings, context in (({"context": "language"}, "none"), ({"context": "none"}, "language")):
        with pytest.raises(ValueError, match="leave context out"):
            learner(make_model(), **settings).frame_surprise(jumping_disc(4), context=context)


def test_a_model_in_training_is_refused():
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        learner(make_model()).train().frame_surprise(jumping_disc(4), context="none")


# ---- loading ----


@pytest.mark.parametrize("tuned_tower", [False, True])
def test_loading_with_surprise_brings_the_predictor_back(tokenizer, tmp_path, tuned_tower, caplog):
    model = learner(make_model(tokenizer), tuned_tower=tuned_tower, num_hist=5)
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = llava.load(tmp_path, surprise=True)
    assert loaded.autoregressive_reconstruction.config == model.autoregressive_reconstruction.config
    assert not caplog.records  # the tower was not changed since
    expected, found = (m.frame_surprise(jumping_disc(4), "What moves?") for m in (model, loaded))
    assert torch.equal(expected[0, 1:], found[0, 1:])


def test_answers_are_the_same_to_the_bit_with_and_without_surprise(tokenizer, tmp_path):
    learner(make_model(tokenizer)).save_pretrained(tmp_path)
    plain, asked = llava.load(tmp_path), llava.load(tmp_path, surprise=True)
    assert plain.autoregressive_reconstruction is None
    ids, images, _ = encode_prompt(plain, [llava.Video([Image.new("RGB", (40, 40), "red")] * 4), "What moves?"])
    wanted = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    without = plain.generate(ids, images, **wanted)
    asked.frame_surprise(jumping_disc(4))
    beside = asked.generate(ids, images, **wanted)
    assert torch.equal(without.sequences, beside.sequences)
    assert all(torch.equal(a, b) for a, b in zip(without.scores, beside.scores, strict=True))


def test_a_checkpoint_without_a_predictor_is_refused_before_its_weights_are_read(tokenizer, tmp_path):
    make_model(tokenizer).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="trained without the next-frame loss"):
        llava.load(tmp_path, surprise=True)
    with pytest.raises(ValueError, match=r"llava\.load\(path, surprise=True\)"):
        llava.load(tmp_path).frame_surprise(jumping_disc(4))
    with pytest.raises(ValueError, match="give surprise=True"):
        load_pretrained_model(str(tmp_path), teacher=tmp_path)


def tuned_checkpoint(tokenizer, folder):
    """A model whose tower was tuned beside its teacher; returns the model as it was trained."""
    make_model(tokenizer).save_pretrained(folder / "first")
    model = learner(llava.load(folder / "first"), tuned_tower=True)
    with torch.no_grad():
        for weight in model.vision_tower.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    model.save_pretrained(folder / "tuned")
    return model


def test_a_tuned_tower_is_another_teacher_which_is_said_once(tokenizer, tmp_path, caplog):
    model = tuned_checkpoint(tokenizer, tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = llava.load(tmp_path / "tuned", surprise=True)
        loaded.frame_surprise(jumping_disc(4))
        loaded.frame_surprise(jumping_disc(4))
    assert [record.message.count("tuned along") for record in caplog.records] == [1]
    expected, found = (m.frame_surprise(jumping_disc(4))[0, 1:] for m in (model, loaded))
    assert not torch.allclose(expected, found)


def test_the_first_model_gives_the_teacher_of_the_training(tokenizer, tmp_path, caplog):
    model = tuned_checkpoint(tokenizer, tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = llava.load(tmp_path / "tuned", surprise=True, teacher=tmp_path / "first")
    assert not caplog.records
    expected, found = (m.frame_surprise(jumping_disc(4))[0, 1:] for m in (model, loaded))
    assert torch.equal(expected, found)
    make_model(tokenizer, seed=5).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="is not the one with which the predictor"):
        llava.load(tmp_path / "tuned", surprise=True, teacher=tmp_path / "other")


def test_saving_a_model_that_only_measures_keeps_what_is_known_of_its_training(tokenizer, tmp_path):
    tuned_checkpoint(tokenizer, tmp_path)
    llava.load(tmp_path / "tuned", surprise=True).save_pretrained(tmp_path / "again")
    stored = [(tmp_path / name / autoregressive.FOLDER / "config.json").read_text() for name in ("tuned", "again")]
    assert stored[0] == stored[1]
