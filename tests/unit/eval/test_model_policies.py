"""Policies that ask a model: equal to asking it plainly, alone or in a batch, with or without a kept cache."""

import logging

import numpy as np
import pytest
import torch

from llava.conversation import get_template
from llava.data.preprocess import encode_conversation, encode_pieces
from llava.eval.decoding import Context, greedy_answers, left_padded
from llava.eval.make_policy import make_policy
from llava.eval.model_side import ModelSide
from llava.eval.navigation_loop import run_batch
from llava.eval.navila_policy import NavilaPolicy
from llava.eval.policies import EpisodeView, Policy
from llava.eval.streaming_policy import StreamingPolicy
from llava.mm_utils import to_uint8_tensor
from llava.navigation.actions import Action
from llava.navigation.prompt import NavilaFormat, StreamingFormat

WORDS = ["Go to the red ball.", "Walk to the blue box and stop next to it, then wait there.", "Stop."]


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (8, 3, 16, 16, 3), dtype=np.uint8)  # step, episode, picture


class Recorder:
    """Keeps the logits that every answer begins with."""

    def __init__(self, monkeypatch):
        self.logits = []
        feed = Context.feed

        def spy(context, model, embeds, real):
            out = feed(context, model, embeds, real)
            if embeds.shape[1] > 1 or True:
                self.logits.append((embeds.shape[1], out.clone()))
            return out

        monkeypatch.setattr(Context, "feed", spy)

    def of_decisions(self):
        return [logits for columns, logits in self.logits if columns > 1]


def walk(policy, pictures, rows=(0, 1, 2), steps=8):
    """Decisions of some episodes over pictures that do not depend on the actions."""
    views = [EpisodeView(key=f"e{i}", instruction=WORDS[i]) for i in rows]
    decisions = []
    for step in range(steps):
        for view, row in zip(views, rows, strict=True):
            view.frames.append(pictures[step, row])
        decisions.append(policy.act(views))
    for view in views:
        policy.finish(view.key)
    return decisions


@torch.no_grad()
def whole_sequence_logits(model, prompt, instruction, frames, actions):
    """What the model says after the last picture when it reads everything anew in one pass."""
    pieces = prompt.inference_pieces(instruction, list(range(len(frames))), actions)
    sample = encode_pieces(pieces, model.tokenizer, model.visual_spec)
    images = torch.stack([to_uint8_tensor(frame, model.visual_spec) for frame in frames])
    output = model(
        input_ids=sample["input_ids"][None],
        images=images,
        position_ids=sample["position_ids"][None],
        branch_ids=sample["branch_ids"][None],
    )
    return output.logits[0, -1]


@pytest.mark.parametrize("answers_visible", [False, True])
def test_the_kept_cache_equals_reading_everything_again(toys, pictures, monkeypatch, answers_visible):
    model = toys.streaming(answers_visible=answers_visible)
    recorder, policy = Recorder(monkeypatch), make_policy(model)
    decisions = walk(policy, pictures)
    worst = 0.0
    assert len(recorder.of_decisions()) == 8
    for step, logits in enumerate(recorder.of_decisions()):
        for row in range(3):
            actions: list[Action] = [decisions[t][row].action for t in range(step)]
            expected = whole_sequence_logits(model, policy.prompt, WORDS[row], pictures[: step + 1, row], actions)
            worst = max(worst, float((logits[row] - expected).abs().max() / expected.abs().max()))
    logging.getLogger(__name__).info("largest relative difference %.1e", worst)
    assert worst < 1e-5
    assert len({d.text for step in decisions for d in step}) > 2  # the toy does answer differently


@pytest.mark.parametrize("answers_visible", [False, True])
def test_a_batch_of_episodes_decides_as_each_alone(toys, pictures, answers_visible):
    model = toys.streaming(answers_visible=answers_visible)
    together = walk(make_policy(model), pictures)
    for row in range(3):
        alone = walk(make_policy(model), pictures, rows=(row,))
        assert [step[row] for step in together] == [step[0] for step in alone]


def test_episodes_may_begin_pause_and_end_at_different_times(toys, pictures):
    model = toys.streaming()
    expected = walk(make_policy(model), pictures)
    policy = make_policy(model)
    views = [EpisodeView(key=f"e{i}", instruction=WORDS[i]) for i in range(3)]
    schedule = [[0], [0, 1], [1, 2], [0, 2], [2, 0, 1], [1]]
    done = [0, 0, 0]
    for rows in schedule:
        for row in rows:
            views[row].frames.append(pictures[done[row], row])
        for row, decision in zip(rows, policy.act([views[row] for row in rows]), strict=True):
            assert decision == expected[done[row]][row]
            done[row] += 1
    policy.finish("e1")
    views[2].frames.append(pictures[done[2], 2])
    assert policy.act([views[2]]) == [expected[done[2]][2]]


def test_a_full_context_starts_again_from_half_of_the_pictures(toys, tokenizer, pictures):
    model = toys.streaming()
    side = ModelSide(model)
    prompt = StreamingFormat()
    longest = max(len(encode_pieces(prompt.opening(words), tokenizer, side.spec)["input_ids"]) for words in WORDS)
    tight = StreamingPolicy(side, prompt, max_context=longest + 5 * 4 + 1)
    decisions, free = walk(tight, pictures), walk(make_policy(model), pictures)
    assert decisions[:5] == free[:5]  # five pictures fit
    kept = [pictures[t, 0] for t in (4, 5)]
    logits = whole_sequence_logits(model, prompt, WORDS[0], kept, [decisions[0][0].action])
    assert side.text([int(logits.argmax())]) == decisions[5][0].text
    with pytest.raises(ValueError, match="the context holds 12"):
        walk(StreamingPolicy(side, prompt, max_context=12), pictures)


def test_one_token_answers_need_no_second_pass(toys, pictures, monkeypatch):
    recorder = Recorder(monkeypatch)
    policy = make_policy(toys.streaming())
    walk(policy, pictures, steps=3)
    assert policy.max_new_tokens == 1
    assert [columns for columns, _ in recorder.logits][1:] == [4, 4]


def test_nonsense_is_answered_by_the_declared_fallback_and_counted(toys, tokenizer, pictures):
    model = toys.plain(tokenizer, StreamingFormat())
    toys.favour(model, tokenizer, [" user"], bonus=50.0)
    (decision,) = walk(make_policy(model), pictures, rows=(0,), steps=1)[0]
    assert decision.text not in StreamingFormat().action_format.vocabulary()
    assert not decision.understood
    assert decision.action.low_level() == [1]


@torch.no_grad()
def plain_navila_answer(model, view, max_new_tokens):
    """The same question through the model's own generate, one episode at a time, all frames encoded anew."""
    prompt = NavilaFormat(num_frames=4)
    black = np.zeros_like(view.frames[0])
    frames = [black if i < 0 else view.frames[i] for i in prompt.frame_indices(len(view.frames))]
    images = torch.stack([to_uint8_tensor(frame, model.visual_spec) for frame in frames])
    ids = ModelSide(model).question_ids(prompt.question(view.instruction))[None]
    out = model.generate(ids, images, do_sample=False, max_new_tokens=max_new_tokens)
    return model.tokenizer.decode(out[0], skip_special_tokens=True).strip()


def test_navila_answers_equal_those_of_plain_generation(toys, pictures):
    model = toys.navila()
    policy = make_policy(model, max_new_tokens=6)
    assert isinstance(policy, NavilaPolicy)
    views = [EpisodeView(key=f"e{i}", instruction=WORDS[i]) for i in range(3)]
    for step in range(7):
        for row, view in enumerate(views):
            view.frames.append(pictures[step, row])
        if step in (0, 2, 3, 6):
            texts = [decision.text for decision in policy.act(views)]
            assert texts == [plain_navila_answer(model, view, 6) for view in views]


def test_a_frame_is_encoded_once(toys, pictures):
    model = toys.navila()
    policy = make_policy(model, max_new_tokens=1)
    assert isinstance(policy, NavilaPolicy)
    counts = []
    encode = policy.side.picture_features
    policy.side.picture_features = lambda frames: counts.append(len(frames)) or encode(frames)
    view = EpisodeView(key="e", instruction=WORDS[0])
    for step in range(8):
        view.frames.append(pictures[step, 0])
        policy.act([view])
    assert sum(counts) == 8 + 1  # every frame, and the black one
    policy.finish("e")
    assert not policy._questions


def test_a_prompt_that_shares_its_first_frames_reads_only_the_rest(toys, pictures):
    model = toys.navila()
    kept, anew = (NavilaPolicy(ModelSide(model), NavilaFormat(num_frames=4), max_new_tokens=4, kept_bytes=room)
                  for room in (2**30, 0))  # fmt: skip
    decisions, expected = walk(kept, pictures), walk(anew, pictures)
    for step, rows in enumerate(decisions):
        for row, decision in enumerate(rows):
            assert (decision.text, decision.action) == (expected[step][row].text, expected[step][row].action)
    opening, per_picture = expected[0][0].kept_tokens, model.tokens_per_image
    assert all(decision.kept_tokens == opening for rows in expected for decision in rows)
    # frames -1 -1 -1 0, then -1 -1 0 1, -1 0 1 2, 0 1 2 3, 0 1 2 4, ...: two, one, no, three leading ones stay
    leading = [rows[0].kept_tokens for rows in decisions[:5]]
    assert leading[0] == leading[3] == opening
    assert leading[1] > leading[2] >= opening + per_picture and leading[4] > leading[1]


def test_a_robot_that_stands_still_encodes_nothing(toys, pictures):
    for policy in (make_policy(toys.navila(), max_new_tokens=1), make_policy(toys.streaming())):
        view = EpisodeView(key="e", instruction=WORDS[0])
        costs = []
        for _ in range(3):
            view.frames.append(pictures[0, 0])
            (decision,) = policy.act([view])
            costs.append((decision.frames_encoded, decision.frames_reused))
        assert costs[0] == (1, 0) and all(encoded == 0 and reused >= 1 for encoded, reused in costs[1:])


def test_a_growing_sequence_tells_what_it_kept(toys, pictures):
    decisions = walk(make_policy(toys.streaming()), pictures, rows=(0,), steps=3)
    first, second, third = (rows[0] for rows in decisions)
    assert first.kept_tokens == 0 and second.kept_tokens == first.tokens - 1 - len(first.text.split())
    assert third.kept_tokens == second.kept_tokens + 4


def test_the_question_is_tokenised_as_in_training(toys, tokenizer):
    model = toys.navila()
    prompt, side = NavilaFormat(num_frames=4), ModelSide(model)
    trained = encode_conversation(
        prompt.training_messages(WORDS[0], "The next action is turn left 15 degree."),
        tokenizer,
        get_template("llama_3"),
        image_token_id=side.image_token_id,
    )
    asked = side.question_ids(prompt.question(WORDS[0]))
    k = side.spec.tokens_per_image
    is_picture = trained.input_ids == side.image_token_id
    expanded = trained.input_ids.repeat_interleave(torch.where(is_picture, k, 1))
    labels = trained.labels.repeat_interleave(torch.where(is_picture, k, 1))
    assert expanded[: len(asked)].tolist() == asked.tolist()
    assert (labels[: len(asked)] == -100).all()
    assert labels[len(asked)] != -100


@pytest.mark.parametrize("make", ["streaming", "navila"])
def test_whole_walks_are_the_same_in_a_batch_and_alone(toys, make, episodes, batched):
    policy = make_policy(getattr(toys, make)(), max_new_tokens=None if make == "streaming" else 3)
    assert isinstance(policy, Policy)
    together = run_batch(batched(4), policy, episodes[:4], max_steps=12)
    for i, episode in enumerate(episodes[:4]):
        (alone,) = run_batch(batched(1), policy, [episode], max_steps=12)
        assert alone.actions == together[i].actions
        assert [d.text for d in alone.decisions] == [d.text for d in together[i].decisions]
        assert [d.tokens for d in alone.decisions] == [d.tokens for d in together[i].decisions]


def test_greedy_answers_leave_the_context_as_it_was(toys):
    model = toys.navila()
    rows = [model.get_input_embeddings()(torch.tensor(ids)).detach() for ids in ([5, 6, 7], [8, 9, 10, 11, 12])]
    block, real = left_padded(rows)
    context = Context.empty(2)
    logits = context.feed(model, block, real)
    answers = greedy_answers(model, context, logits, (), 4)
    assert context.columns == 5 == context.cache.get_seq_length()
    assert context.lengths.tolist() == [3, 5]
    assert answers == greedy_answers(model, context, logits, (), 4)
    ids = torch.tensor([[5, 6, 7]])
    plain = model.llm.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4, eos_token_id=-1
    )
    assert answers[0] == plain[0, 3:].tolist()


def test_a_model_without_tokenizer_is_refused(toys, tokenizer):
    model = toys.navila()
    model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        make_policy(model)


def test_a_checkpoint_without_a_stored_prompt_is_asked_as_the_published_ones(toys):
    model = toys.navila()
    model.config.navigation_prompt = None
    model.config.num_video_frames = 6
    assert make_policy(model).prompt == NavilaFormat(instruction="raw", num_frames=6)
