"""Ids and labels are the published ones wherever those are right; asides do not count in the numbering of a stream."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llava.batch import VisualSpec
from llava.constants import IGNORE_INDEX
from llava.conversation import get_template
from llava.data.preprocess import TokenizationCompat, encode_conversation, encode_pieces, preprocess_multimodal
from llava.navigation.actions import STOP, Action, ActionKind
from llava.navigation.prompt import Piece, Step, StreamingFormat
from llava.utils.tokenizer import train_tokenizer

NAVILA = TokenizationCompat.navila()
SPEC = VisualSpec(image_size=8, tokens_per_image=3)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)

DIFFERENCES = {
    "all masked": "The original cannot match the template when a separator or the space before an answer melts into "
    "a neighbouring token, and masks the whole sample. Ours trains the answer and its end.",
    "part of the end": "The original trains one token after the answer. Where the separator is several tokens "
    "(`</s>`, `###`, `<|im_end|>` unknown to the tokenizer, space + `</s>`), ours trains all of them, else "
    "the model never learns to end.",
    "space before the answer": "SentencePiece tokenizers with a template that puts a space before the answer: the "
    "original trains that space in later answers only, ours never (it is part of the question side, given at "
    "generation).",
    "leading space": "A chunk that begins with a space: the slow SentencePiece tokenizer of transformers 4.37 wrote "
    "two space tokens, transformers 5 has fast tokenizers only, which write one.",
    "answer first": "`auto` with a chat template that demands alternating roles: the original raises on a dialogue "
    "that begins with an answer; a template without that demand is followed here.",
}

LLAVA_DIFFERENCES = {
    "text of v0": "The original trains `v0` on another text than it answers in: two line breaks behind the system "
    "text, `### Human: ` with a line break at the end of each turn, and a mask that trains parts of `Assistant:`. "
    "Ours uses the template for both.",
    "white space": "LLaVA-1.5 keeps white space around a turn, NaVILA and ours drop it.",
    "pictures of plain": "The original keeps one placeholder of a caption's pictures, ours one for each picture.",
    "several turns of vicuna": "The original raises AttributeError for two turns with a fast tokenizer; ours trains "
    "them.",
}


def difference(ours, expected):
    """Name of the row of DIFFERENCES that explains the labels, None when they are equal."""
    if ours == expected:
        return None
    if all(label == IGNORE_INDEX for label in expected):
        return "all masked"
    added = [a for a, b in zip(ours, expected, strict=True) if a != b and b == IGNORE_INDEX]
    removed = [b for a, b in zip(ours, expected, strict=True) if a != b and a == IGNORE_INDEX]
    assert len(added) + len(removed) == sum(a != b for a, b in zip(ours, expected, strict=True))
    return "space before the answer" if removed else "part of the end"


@pytest.fixture(scope="module")
def tokenizers(golden):
    folder = golden / "A_navila"
    loaded = {
        "l3": AutoTokenizer.from_pretrained(folder / "checkpoint/llm"),
        "sp": AutoTokenizer.from_pretrained(folder / "tokenizer_sp_llama", legacy=False),
        "chatml": AutoTokenizer.from_pretrained(folder / "tokenizer_chatml"),
    }
    loaded["l3"].chat_template = loaded["chatml"].chat_template = CHATML
    loaded["sp"].chat_template = INST
    return loaded


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return train_tokenizer(
        ["Your task is: go. ↑ ↑↑ ← STOP Where is the red ball? left"] * 2, 600, tmp_path_factory.mktemp("t")
    )


def test_golden_navila_samples_are_exact(golden, tokenizers):
    arrays = np.load(golden / "A_navila/arrays/conversations.npz")
    for sample in json.loads((golden / "A_navila/conversations.json").read_text()):
        encoded = encode_conversation(sample["messages"], tokenizers["l3"], get_template("llama_3"), compat=NAVILA)
        assert encoded.input_ids.tolist() == arrays[f"{sample['name']}/input_ids"].tolist()
        assert encoded.labels.tolist() == arrays[f"{sample['name']}/labels"].tolist()


def test_golden_data_set_samples_are_exact(golden, tokenizers):
    samples = json.loads((golden / "E_vln_datasets/samples.json").read_text())["samples"]
    compared = 0
    for sample in samples:
        if sample.get("all_masked", True) or "input_ids" not in sample:
            continue
        encoded = encode_conversation(sample["conversation"], tokenizers["l3"], get_template("llama_3"), compat=NAVILA)
        assert encoded.input_ids.tolist() == sample["input_ids"]
        assert encoded.labels.tolist() == sample["labels"]
        compared += 1
    assert compared >= 20


def test_golden_labels_of_every_template_and_tokenizer(golden, tokenizers):
    recorded = json.loads((golden / "A_navila/text/preprocess_labels.json").read_text())
    rows = dict.fromkeys([*DIFFERENCES, None], 0)
    for key, expected in recorded["outputs"].items():
        template, tokenizer, case, *rest = key.split("|")
        turns = recorded["plain_conversation"] if template == "plain" else recorded["conversations"][case]
        layout = get_template(template).without_system() if rest else get_template(template)
        encoded = encode_conversation(turns, tokenizers[tokenizer], layout, compat=NAVILA)
        ids, labels = encoded.input_ids.tolist(), encoded.labels.tolist()
        if "error" in expected:
            row = "answer first"
        elif ids != expected["input_ids"]:
            shorter = [expected[name][:1] + expected[name][2:] for name in ("input_ids", "labels")]  # one of two spaces
            assert ids == shorter[0], key
            assert difference(labels, shorter[1]) in (None, "space before the answer"), key
            row = "leading space"
            assert tokenizer == "sp" and layout.system == "", key
        else:
            row = difference(labels, expected["labels"])
        rows[row] += 1
        assert row is None or template != "llama_3" or tokenizer == "sp", key
    assert rows == {
        None: 62,
        "all masked": 42,
        "part of the end": 138,
        "space before the answer": 10,
        "leading space": 8,
        "answer first": 1,
    }


@pytest.fixture(scope="module")
def llava_tokenizers(golden, tokenizers):
    path = golden / "A_navila/tokenizer_sp_llama"
    legacy = {"sp_slow": True, "sp_slow_nonlegacy": False, "sp_fast": True}
    return {"l3": tokenizers["l3"], **{k: AutoTokenizer.from_pretrained(path, legacy=v) for k, v in legacy.items()}}


def bare(tokenizer, ids):
    """The text of some ids without white space, separators of hashes and pictures."""
    return "".join(tokenizer.decode([token for token in ids if token >= 0]).replace("#", "").split())


def llava_difference(key, ids, labels, expected, tokenizer):
    """Name of the row of LLAVA_DIFFERENCES that explains a case, None where ids and labels are equal."""
    template, name, case = key.split("|")[:3]
    theirs, words = expected["input_ids"], [t for t in expected["labels"] if t != IGNORE_INDEX]
    if ids == theirs:
        return difference(labels, expected["labels"])
    trained = [token for token in labels if token != IGNORE_INDEX]
    if template == "v0":
        assert case == "gpt_first" or bare(tokenizer, ids) == bare(tokenizer, theirs), key
        return "text of v0"
    if template == "plain" and case == "three_images_nav":
        assert [token for token in ids if token != -200] == [token for token in theirs if token != -200], key
        assert (trained, ids.count(-200), theirs.count(-200)) == (words, 3, 1), key
        return "pictures of plain"
    if case == "whitespace":
        assert bare(tokenizer, ids) == bare(tokenizer, theirs), key
        assert not words or bare(tokenizer, trained) == bare(tokenizer, words), key
        return "white space"
    twice = next(k for k, (a, b) in enumerate(zip(ids, theirs, strict=False)) if a != b)
    assert ids == theirs[:twice] + theirs[twice + 1 :] and theirs[twice] == theirs[twice - 1], key
    assert name in ("sp_slow", "sp_fast") and tokenizer.convert_ids_to_tokens(theirs[twice]) == "▁", key
    return "leading space"


def test_golden_llava_labels_of_every_template_and_tokenizer(golden, llava_tokenizers):
    """LLaVA-1.5's own code: 5 templates x 4 tokenizers x 7 dialogues."""
    recorded = json.loads((golden / "C_llava15/text/preprocess_labels.json").read_text())
    rows = dict.fromkeys([*LLAVA_DIFFERENCES, "all masked", "space before the answer", "leading space", None], 0)
    for key, expected in recorded["outputs"].items():
        template, name, case = key.split("|")[:3]
        turns = recorded["conversations"][case]
        encoded = encode_conversation(turns, llava_tokenizers[name], get_template(template), compat=NAVILA)
        ids, labels = encoded.input_ids.tolist(), encoded.labels.tolist()
        assert any(label != IGNORE_INDEX for label in labels), key
        if "error" in expected:
            assert expected["error"].endswith("has no attribute 'legacy'"), key
            row = "several turns of vicuna"
        else:
            row = llava_difference(key, ids, labels, expected, llava_tokenizers[name])
        rows[row] += 1
        is_published = (template, name) == ("vicuna_v1", "sp_slow")
        assert not is_published or row in (None, "space before the answer", "white space", "leading space"), key
    assert rows == {
        None: 30,
        "all masked": 34,
        "space before the answer": 4,
        "leading space": 8,
        "text of v0": 28,
        "white space": 16,
        "pictures of plain": 4,
        "several turns of vicuna": 4,
    }


def test_the_table_of_differences_is_written_down():
    table = (Path(__file__).parents[2] / "numerics/DIFFERENCES.md").read_text()
    for name, reason in {**DIFFERENCES, **LLAVA_DIFFERENCES}.items():
        assert f"| {name} |" in table
        assert reason.split(".")[0] in table


def test_golden_placeholders(golden):
    for case in json.loads((golden / "A_navila/text/preprocess_multimodal.json").read_text()):
        options = {"mm_use_im_start_end": case["mm_use_im_start_end"], "mmtag": "mmtag" in case["template"]}
        turns = [{"from": "human", "value": case["in"]}]
        assert preprocess_multimodal(turns, **options) == [{"from": "human", "value": case["out"]}]
        assert turns == [{"from": "human", "value": case["in"]}]


def test_a_dialogue_without_an_answer_is_refused(own):
    with pytest.raises(ValueError, match=r"needs an answer after a question, got turns of \['user'\]"):
        encode_conversation([{"from": "human", "value": "hello"}], own, get_template("llama_3"))
    with pytest.raises(ValueError, match="'plain' takes one question and one answer"):
        encode_conversation([{"from": f, "value": "x"} for f in ("human", "gpt") * 2], own, get_template("plain"))


def test_a_caption_pair_shows_the_picture_and_trains_the_caption(own):
    turns = [{"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": "red ball"}]
    encoded = encode_conversation(turns, own, get_template("plain"), image_token_id=-7)
    trained = [label for label in encoded.labels.tolist() if label != IGNORE_INDEX]
    assert own.decode(trained) == "red ball\n"
    assert encoded.input_ids.tolist()[:2] == [own.bos_token_id, -7]


def test_streaming_episode_by_hand(own):
    steps = [
        Step(frame=0, action=Action(ActionKind.FORWARD, 2), questions=[("Where?", "left")]),
        Step(frame=4, action=STOP),
    ]
    sample = encode_pieces(StreamingFormat().training_pieces("go", steps), own, SPEC)
    opening = len(own("Your task is: Go\n").input_ids)
    question = len(own("Where?", add_special_tokens=False).input_ids)
    aside = 2 + question + 2  # ↑↑ end, Where?, left end
    assert sample["branch_ids"].tolist() == [0] * (opening + 3) + [1] * 2 + [2] * (question + 2) + [0] * 3 + [3] * 2
    assert sample["frame_ids"].tolist() == [-1] * opening + [0] * (3 + aside) + [1] * 5
    hangs = opening + 3
    asides = [hangs, hangs + 1, *range(hangs, hangs + question + 2)]
    rest = list(range(hangs, hangs + 5))
    assert sample["position_ids"].tolist() == [*range(hangs), *asides, *rest]
    trained = sample["labels"][sample["labels"] != IGNORE_INDEX]
    assert own.decode(trained.tolist()) == "↑↑<|eot_id|>left<|eot_id|>STOP<|eot_id|>"


@st.composite
def episodes(draw):
    """Trunk pieces with asides that begin unsupervised, or supervised directly behind the trunk."""
    pieces, branch = [Piece(text="go")], 0
    for frame in range(draw(st.integers(0, 5))):
        pieces.append(Piece(frame=frame))
        for aside in range(draw(st.integers(0, 3))):
            branch += 1
            if aside:
                pieces.append(Piece(text="Where?", branch=branch))
            pieces.append(Piece(text=draw(st.sampled_from(["STOP", "↑↑ left"])), supervised=True, branch=branch))
    return pieces


@settings(max_examples=50, deadline=None)
@given(pieces=episodes())
def test_the_trunk_is_the_same_with_and_without_its_branches(own, pieces):
    whole, trunk = (encode_pieces(p, own, SPEC) for p in (pieces, [p for p in pieces if p.branch == 0]))
    of_trunk = whole["branch_ids"] == 0
    for name in ("input_ids", "position_ids", "frame_ids"):
        assert whole[name][of_trunk].tolist() == trunk[name].tolist()
    assert trunk["position_ids"].tolist() == list(range(len(trunk["input_ids"])))


@settings(max_examples=50, deadline=None)
@given(pieces=episodes())
def test_a_branch_goes_on_from_where_it_hangs(own, pieces):
    sample = encode_pieces(pieces, own, SPEC)
    branches, positions = sample["branch_ids"].tolist(), sample["position_ids"].tolist()
    for branch in set(branches) - {0}:
        where = [i for i, b in enumerate(branches) if b == branch]
        last_trunk = max(i for i in range(where[0]) if branches[i] == 0)
        start = positions[last_trunk] + 1
        assert [positions[i] for i in where] == list(range(start, start + len(where)))
        assert where == list(range(where[0], where[0] + len(where)))
    assert sample["labels"][0] == IGNORE_INDEX


@settings(max_examples=50, deadline=None)
@given(pieces=episodes())
def test_every_trained_token_is_predicted_by_a_token_it_may_see(own, pieces):
    sample = encode_pieces(pieces, own, SPEC)
    branches, labels = sample["branch_ids"].tolist(), sample["labels"].tolist()
    for index, label in enumerate(labels):
        if label != IGNORE_INDEX:
            assert branches[index - 1] in (0, branches[index])


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([Piece(text="b", branch=1, supervised=True), Piece(text="c", branch=2, supervised=True)], "cannot see"),
        ([Piece(text="b", branch=1), Piece(text="c", supervised=True)], "'c' of branch 0 follows branch 1"),
        ([Piece(text="b", branch=1), Piece(frame=0), Piece(text="c", branch=1)], "taken up again"),
    ],
)
def test_pieces_that_could_not_be_learnt_are_refused(own, pieces, words):
    with pytest.raises(ValueError, match=words):
        encode_pieces([Piece(text="a"), *pieces], own, SPEC)


def test_questions_hang_beside_the_answer_and_see_the_prompt_only(tmp_path):
    import torch

    from llava.data.preprocess import hang_questions

    class Words:
        def __call__(self, text, add_special_tokens):
            return type("Out", (), {"input_ids": [ord(c) for c in text]})

    sample = {
        "input_ids": torch.tensor([1, 2, 3, 7, 8]),
        "labels": torch.tensor([-100, -100, -100, 7, 8]),
        "frame_ids": torch.tensor([-1, 0, 0, 0, 0]),
    }
    hung = hang_questions(sample, [("a?", "5"), ("b?", "6")], Words(), ".")
    assert hung["branch_ids"].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
    assert hung["position_ids"].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6, 3, 4, 5, 6]
    assert hung["labels"].tolist()[5:9] == [-100, -100, ord("5"), ord(".")]
    assert hung["frame_ids"].tolist() == [-1] + [0] * 12
    assert hang_questions(sample, [], Words(), ".") is sample
