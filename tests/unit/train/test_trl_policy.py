"""What trl sees of a model: the same text, the same log-probabilities and the same answers as everywhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import llava
from llava.conversation import get_template
from llava.mm_utils import expand_image_tokens
from llava.model.generation import encode_prompt
from llava.train.trl_policy import INNER, Policy, reference_of
from llava.train.trl_processor import BLACK, PolicyProcessor, parts_of, text_of
from llava.utils.tokenizer import tokenize_conversation
from tests.unit.model.autoregressive_reconstruction.surprise_toy import SIDE, make_model, make_tokenizer

QUESTION, ANSWER = "Walk to the red ball.", "Go to the blue box."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(make_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def processor(model) -> PolicyProcessor:
    return PolicyProcessor.of(model)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def asked(*pictures, words: str = QUESTION) -> list[dict]:
    parts = [{"type": "image", "image": one} for one in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": f"\n{words}"}]}]


def test_a_prompt_has_the_ids_and_pictures_of_any_other_question_to_the_model(model, processor):
    messages = asked(picture(0), picture(1))
    found = processor.apply_chat_template([messages], add_generation_prompt=True, tokenize=True, return_dict=True)
    ids, images, _ = encode_prompt(model, [picture(0), picture(1), f"\n{QUESTION}"])
    expected, _ = expand_image_tokens(ids[0], ids[0], [model.tokens_per_image] * 2, model.config.image_token_id)
    if expected.tolist() != found["input_ids"][0]:  # generate_content puts each picture on a line of its own
        ids = torch.tensor(
            tokenize_conversation(
                [{"role": "user", "content": text_of(messages[0]["content"])}], model.tokenizer,
                get_template("llama_3"), add_generation_prompt=True, image_token_id=model.config.image_token_id,
            )
        )  # fmt: skip
        expected, _ = expand_image_tokens(ids, ids, [model.tokens_per_image] * 2, model.config.image_token_id)
    assert found["input_ids"][0] == expected.tolist()
    assert torch.equal(found["pixel_values"], images)


def test_prompt_and_answer_join_to_the_ids_of_a_training_sample(model, processor):
    """trl tokenises the completion apart: the text is cut where the generation prompt ends."""
    messages, reply = asked(picture(0)), [{"role": "assistant", "content": ANSWER}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    whole = processor.apply_chat_template([*messages, *reply])
    assert whole.startswith(prompt)
    first = processor(text=[prompt], images=[[picture(0)]], add_special_tokens=False)["input_ids"][0]
    second = processor(text=[whole[len(prompt) :]], add_special_tokens=False)["input_ids"][0]
    ids = tokenize_conversation(
        [{"role": "user", "content": text_of(messages[0]["content"])}, *reply],
        model.tokenizer, get_template("llama_3"), image_token_id=model.config.image_token_id,
    )  # fmt: skip
    tokens = torch.tensor(ids)
    expected, _ = expand_image_tokens(tokens, tokens, [model.tokens_per_image], model.config.image_token_id)
    assert first + second == expected.tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_padded_on_the_side_that_is_asked_for(processor, side):
    found = processor(text=["Go", "Go to the red ball"], padding=True, padding_side=side, add_special_tokens=False)
    lengths = found["attention_mask"].sum(dim=1)
    short, longest = int(lengths[0]), found["input_ids"].shape[1]
    assert short < longest == int(lengths[1])
    expected = [0] * (longest - short) + [1] * short
    assert found["attention_mask"][0].tolist() == (expected if side == "left" else expected[::-1])


def test_a_text_with_its_pictures_is_the_reverse_of_its_parts():
    text = "Seen <image>\n<image>\n, and now <image>\n. Go"
    assert text_of(parts_of(text)) == text
    assert [part["type"] for part in parts_of("<image>\nGo")] == ["image", "text"]


def test_a_missing_frame_is_black(processor):
    pixels = processor.image_processor([BLACK, picture(0)])["pixel_values"]
    assert pixels.dtype == torch.uint8
    assert int(pixels[0].max()) == 0 < int(pixels[1].max())


def batch(processor, side: str = "left") -> dict:
    texts = [
        processor.apply_chat_template(asked(picture(0), words=words), add_generation_prompt=True)
        for words in ("Go.", QUESTION)
    ]
    return dict(processor(text=texts, images=[[picture(0)], [picture(0)]], padding=True, padding_side=side))


@torch.no_grad()
def test_states_and_logits_are_those_of_the_model_whatever_the_padding(model, processor):
    policy = Policy(model).eval()
    rows = batch(processor, "right")
    expected = model(rows["input_ids"], rows["pixel_values"], rows["attention_mask"]).logits
    assert torch.allclose(policy(**rows).logits, expected, atol=1e-5)
    states = policy.base_model(**rows).last_hidden_state
    assert torch.allclose(policy.get_output_embeddings()(states), expected, atol=1e-5)
    left = batch(processor, "left")
    assert torch.allclose(
        policy(**left).logits[:, -1], expected[range(2), rows["attention_mask"].sum(1) - 1], atol=1e-4
    )


def test_generation_gives_the_prompt_and_what_the_model_itself_says(model, processor):
    rows = batch(processor)
    policy = Policy(model).eval()
    found = policy.generate(**rows, max_new_tokens=4, do_sample=False)
    own = model.generate(
        rows["input_ids"],
        rows["pixel_values"],
        attention_mask=rows["attention_mask"],
        max_new_tokens=4,
        do_sample=False,
    )
    assert torch.equal(found, torch.cat([rows["input_ids"], own], dim=1))
    assert policy.generation_config.eos_token_id == model.stop_token_ids()


def test_it_writes_a_folder_that_loads_as_any_other(model, tmp_path):
    policy = Policy(model)
    policy.save_pretrained(tmp_path, state_dict=policy.state_dict())
    again = llava.load(tmp_path, device="cpu")
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in again.state_dict().items())
    assert all(name.startswith(INNER) for name in policy.state_dict())


def test_the_reference_stays_as_it_is(model):
    policy = Policy(model)
    reference = reference_of(policy)
    assert not any(p.requires_grad for p in reference.parameters())
    own = {p.data_ptr() for p in policy.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in reference.parameters())


def test_rows_that_were_cut_are_refused(model, processor):
    rows = batch(processor)
    with pytest.raises(ValueError, match="visual tokens"):
        Policy(model)(rows["input_ids"][:, -3:], rows["attention_mask"][:, -3:], rows["pixel_values"])


def test_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(ValueError, match="expected a trained checkpoint"):
        Policy(make_model())


def test_the_processor_can_be_shown(processor):
    assert "PictureProcessor" in repr(processor)


def test_tools_have_no_place_in_a_template(processor):
    with pytest.raises(ValueError, match="leave them out"):
        processor.apply_chat_template(asked(), tools=[print])
