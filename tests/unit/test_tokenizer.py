"""Special tokens, label marks, stop tokens and the small tokenizer that the repository trains itself."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llava.constants import IGNORE_INDEX
from llava.conversation import TextPiece, get_template
from llava.navigation.actions import ArrowFormat
from llava.utils.tokenizer import (
    TokenizationCompat,
    encode_marked,
    ensure_special_tokens,
    infer_stop_tokens,
    tokenize_conversation,
    train_tokenizer,
)

CORPUS = [
    "Turn left. Walk past the red ball and stop next to the blue box.",
    "The next action is move forward 75 cm.",
    "↑ ↑↑ ↑↑↑ ← ←← ←←← → →→ →→→ STOP",
] * 3


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CORPUS, 600, folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def sentencepiece(golden):
    return AutoTokenizer.from_pretrained(golden / "A_navila/tokenizer_sp_llama", legacy=False)


@pytest.fixture(scope="module")
def llama_3(golden):
    return AutoTokenizer.from_pretrained(golden / "A_navila/checkpoint/llm")


def test_frequent_words_arrows_and_digits_are_one_token_each(own):
    ids = own("Walk past the red ball 75", add_special_tokens=False).input_ids
    assert [own.decode([i]) for i in ids] == ["Walk", " past", " the", " red", " ball", " ", "7", "5"]
    for answer in [*ArrowFormat().vocabulary(), "ball", "left"]:
        assert len(own(answer + "<|eot_id|>", add_special_tokens=False).input_ids) == 2, answer


def test_the_own_tokenizer_has_the_special_tokens_of_llama_3(own):
    assert (own.bos_token, own.eos_token, own.pad_token) == ("<|begin_of_text|>", "<|end_of_text|>", "[PAD]")
    assert own("hi").input_ids[0] == own.bos_token_id
    assert ensure_special_tokens(own) == own.convert_tokens_to_ids("<image>")
    assert len({own.bos_token_id, own.eos_token_id, own.pad_token_id, ensure_special_tokens(own)}) == 4


def test_training_the_tokenizer_twice_writes_the_same_bytes(tmp_path):
    hashes = set()
    for run in range(2):
        train_tokenizer(iter(CORPUS), 600, tmp_path / str(run))
        hashes.add(hashlib.sha256((tmp_path / str(run) / "tokenizer.json").read_bytes()).hexdigest())
    assert len(hashes) == 1


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_survives_the_own_tokenizer(own, text):
    assert own.decode(own(text, add_special_tokens=False).input_ids) == text


def test_too_small_a_vocabulary_and_an_empty_corpus_are_refused(tmp_path):
    with pytest.raises(ValueError, match="vocab_size is 100, expected at least 263"):
        train_tokenizer(CORPUS, 100, tmp_path)
    with pytest.raises(ValueError, match="no words"):
        train_tokenizer([""], 600, tmp_path)


def test_image_token_is_added_once_and_text_around_it_stays(llama_3):
    before = len(llama_3)
    first, second = ensure_special_tokens(llama_3), ensure_special_tokens(llama_3)
    assert first == second == llama_3("<image>", add_special_tokens=False).input_ids[0]
    assert len(llama_3) == before + 1
    ids = llama_3("a<image>b<|eot_id|>", add_special_tokens=False).input_ids
    assert ids.count(first) == 1 and llama_3.decode(ids, skip_special_tokens=True) == "ab"


def test_a_token_is_trained_when_it_holds_a_supervised_character(own):
    pieces = [TextPiece("Turn"), TextPiece(" left", True), TextPiece(" <image>\n"), TextPiece("the red", True)]
    ids, labels = encode_marked(pieces, own, compat=TokenizationCompat(), image_token_id=-200)
    assert own.decode([label for label in labels if label != IGNORE_INDEX]) == " leftthe red"
    assert ids.count(-200) == 1 and labels[ids.index(-200)] == IGNORE_INDEX


def test_the_first_token_is_never_trained(own):
    own_without_bos = encode_marked([TextPiece("left", True)], own, compat=TokenizationCompat())
    assert own_without_bos[1][0] == IGNORE_INDEX


@pytest.mark.parametrize(("double_bos", "expected"), [(True, 2), (False, 1)])
def test_the_second_beginning_of_text_is_kept_only_for_old_weights(own, double_bos, expected):
    messages = [{"from": "human", "value": "go"}]
    compat = TokenizationCompat(double_bos=double_bos)
    ids = tokenize_conversation(messages, own, get_template("llama_3"), add_generation_prompt=True, compat=compat)
    assert ids.count(own.bos_token_id) == expected


def test_compat_is_stored_as_a_plain_dict():
    assert TokenizationCompat.from_config(None) == TokenizationCompat()
    stored = {"double_bos": True, "chunkwise": True}
    assert TokenizationCompat.from_config(stored) == TokenizationCompat.navila()


def test_golden_stop_tokens(golden, llama_3, sentencepiece):
    tokenizers = {
        "l3": llama_3,
        "sp": sentencepiece,
        "chatml": AutoTokenizer.from_pretrained(golden / "A_navila/tokenizer_chatml"),
    }
    recorded = json.loads((golden / "A_navila/text/infer_stop_tokens.json").read_text())
    for key, expected in recorded.items():
        template, tokenizer = key.split("|")
        assert infer_stop_tokens(tokenizers[tokenizer], get_template(template)) == sorted(expected), key


def test_chunks_and_whole_text_give_the_same_ids_for_byte_level_tokenizers(own):
    messages = [{"from": "human", "value": "<image>\nTurn left <image>\n."}, {"from": "gpt", "value": "↑↑"}]
    for template in ("llama_3", "plain", "v1"):
        ids = [
            tokenize_conversation(messages, own, get_template(template), compat=TokenizationCompat(chunkwise=chunkwise))
            for chunkwise in (False, True)
        ]
        assert ids[0] == ids[1]


def test_a_phrase_is_one_token_and_words_inside_it_stay_words_elsewhere(tmp_path):
    tokenizer = train_tokenizer(CORPUS, 600, tmp_path, phrases=["The next action is"])
    assert tokenizer.tokenize("The next action is")[0] == "The next action is"
    assert len(tokenizer.tokenize("The next")) > 1
    text = "The next action is turn left"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
