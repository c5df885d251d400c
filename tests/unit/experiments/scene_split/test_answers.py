"""One model in all ways of reading a picture. Random weights of a few thousand parameters, loud enough to differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llava.model.builder import build_model
from llava.utils.tokenizer import train_tokenizer
from playground.experiments.scene_split.answers import Answerer, Prompt
from playground.experiments.scene_split.ways import WAYS, make_answerer, make_cache

SIDE, PATCH = 32, 8
QUESTION = "<image>\nWhat colour is the ball?"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["What colour is the ball? red green blue", "system user assistant How many boxes are there? 1 2 3"]
    return train_tokenizer(texts * 3, 512, tmp_path_factory.mktemp("tokenizer"))


def made(tokenizer, *, split):
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    parts = {
        "llm_cfg": {"model_type": "llama", "vocab_size": len(tokenizer), "num_key_value_heads": 4,
                    "max_position_embeddings": 256, "eos_token_id": tokenizer.eos_token_id, **words},
        "vision_tower_cfg": {"model_type": "siglip_vision_model", "image_size": SIDE, "patch_size": PATCH, **vision},
        "mm_projector_cfg": {"mm_projector_type": "linear"},
        "version": "llama_3",
    }  # fmt: skip
    model = build_model(parts, tokenizer=tokenizer)
    if split:
        model.initialize_scene_split({})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def full(tokenizer):
    return made(tokenizer, split=False)


@pytest.fixture(scope="module")
def split(tokenizer, tmp_path_factory):
    return made(train_tokenizer(["What colour is the ball? red"] * 3, 512, tmp_path_factory.mktemp("own")), split=True)


def shown(seed=0, objects=((0, 0), (1, 1)), colour=200, **more):
    """Noise as background, and some 8 x 8 cells of one colour that are objects."""
    picture = np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    for row, column in objects:
        mask[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = True
    picture[mask] = colour
    return Prompt(text=QUESTION, pictures=[picture], masks=[mask], camera="door", **more)


def test_an_exact_cache_changes_no_answer_and_computes_objects_only(split):
    prompts = [shown(colour=value) for value in (20, 120, 220)]
    plain, cached = Answerer(model=split, how="split"), Answerer(model=split, how="split", cache=make_cache("exact"))
    for number, prompt in enumerate(prompts):
        (without,), (answer,) = plain.answer([prompt]), cached.answer([prompt])
        assert answer.text == without.text
        assert (without.computed, without.total, without.background) == (16, 16, 14)
        assert answer.computed == (2 if number else 16) and answer.reused == (14 if number else 0)
        assert answer.provenance == (("exact_kv",) if number else ("miss",))


def test_a_guarded_cache_allows_the_noise_that_it_is_told_and_no_more(split):
    first, other = shown(), shown()
    noisy = np.clip(other.pictures[0].astype(int) + 3, 0, 255).astype(np.uint8)
    other = Prompt(text=QUESTION, pictures=[noisy], masks=other.masks, camera="door")
    for noise, word in ((4.0, "guarded"), (0.1, "rejected:stale")):
        answerer = make_answerer(split, WAYS["guarded"], noise=noise)
        answerer.answer([first])
        (reply,) = answerer.answer([other])
        assert reply.provenance == (word,) and (reply.reused > 0) == (word == "guarded")


def test_dropping_keeps_as_many_tokens_as_show_objects_and_a_share_of_the_rest(full):
    for way, count in (("dropped", 2), ("dropped_quarter", 2 + round(14 / 4))):
        (reply,) = make_answerer(full, WAYS[way]).answer([shown()])
        assert (reply.computed, reply.total) == (count, 16)


def test_dropping_nothing_answers_as_the_whole_picture_does(full):
    prompts = [shown(), shown(seed=1, objects=((2, 2),))]
    whole = Answerer(model=full, how="whole").answer(prompts)
    kept = Answerer(model=full, how="drop", kept_background=1.0).answer(prompts)
    assert [reply.text for reply in kept] == [reply.text for reply in whole]
    assert [reply.computed for reply in kept] == [16, 16]


def test_a_model_without_the_split_can_be_read_apart_to_measure_it(full):
    (reply,) = make_answerer(full, WAYS["untrained"]).answer([shown()])
    assert (reply.computed, reply.background, reply.provenance) == (16, 14, ())


def test_answers_of_a_batch_are_those_of_single_prompts(full, split):
    prompts = [shown(), shown(seed=1, objects=())]
    longer = Prompt(text=QUESTION + " red green", pictures=prompts[1].pictures, masks=prompts[1].masks, camera="hall")
    for answerer in (Answerer(model=full, how="whole"), Answerer(model=split, how="split")):
        together = answerer.answer([prompts[0], longer])
        assert [r.text for r in together] == [answerer.answer([p])[0].text for p in (prompts[0], longer)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"how": "apart"}, "expected one of"),
        ({"how": "whole", "cache": make_cache("exact")}, "goes with 'split'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(full, settings, words):
    with pytest.raises(ValueError, match=words):
        Answerer(model=full, **settings)


def test_a_model_of_the_split_is_not_read_as_a_whole_and_a_guard_needs_a_noise(split):
    with pytest.raises(ValueError, match="take 'split'"):
        Answerer(model=split, how="whole")
    with pytest.raises(ValueError, match="needs the noise"):
        make_cache("guarded")
