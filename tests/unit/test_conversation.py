"""Templates render to the byte as published, and mark exactly what the assistant says."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.conversation import (
    ASSISTANT,
    TEMPLATES,
    USER,
    SeparatorStyle,
    Turn,
    get_template,
    template_of_released_model,
)

DIALOGUE = [Turn(USER, "Where?"), Turn(ASSISTANT, "There."), Turn(USER, "Sure?"), Turn(ASSISTANT, "Yes.")]
EXPLICIT = [name for name, template in TEMPLATES.items() if template.style is not SeparatorStyle.AUTO]
NOT_RENDERED = {
    "A_navila": {"auto"},  # by a tokenizer; see below
    "C_llava15": {"plain", "v0_plain"},  # not recorded
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ChatTokenizer:
    """Renders like a tokenizer that has a chat template."""

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        from jinja2 import Template

        return Template(self.chat_template).render(messages=messages, add_generation_prompt=add_generation_prompt)


def turns_of(pairs):
    return [Turn(role, text) for pair in pairs for role, text in zip((USER, ASSISTANT), pair, strict=True)]


@pytest.mark.parametrize("source", ["A_navila", "C_llava15"])
def test_golden_renders(golden, source):
    recorded = json.loads((golden / source / "text/conversation_prompts.json").read_text())
    turns, checked = turns_of(recorded["dialogue"]), dict.fromkeys(recorded["templates"], 0)
    for name, expected in recorded["templates"].items():
        if name not in TEMPLATES:
            continue
        template = get_template(name)
        renders = {
            "full": template.style is not SeparatorStyle.AUTO and template.render(turns, examples=True),
            "no_preset_full": template.style is not SeparatorStyle.AUTO and template.render(turns),
            "generation": template.style is not SeparatorStyle.AUTO
            and template.render(turns[:-1], add_generation_prompt=True, examples=True),
            "single_turn_generation": template.style is not SeparatorStyle.AUTO
            and template.render(turns[:1], add_generation_prompt=True, examples=True),
        }
        for key, text in renders.items():
            if expected.get(key) is not None:
                assert text == expected[key], (name, key)
                checked[name] += 1
    assert {name for name, count in checked.items() if count == 0} == NOT_RENDERED[source]


def test_golden_fields(golden):
    recorded = json.loads((golden / "A_navila/text/conversation_prompts.json").read_text())
    assert set(recorded["templates"]) == set(TEMPLATES) - {"mistral_instruct", "chatml_direct", "mistral_direct"}
    for name, expected in recorded["templates"].items():
        template = get_template(name)
        ours = (
            template.version,
            template.style.name,
            template.system,
            list(template.roles),
            template.sep,
            template.sep2,
        )
        assert ours == tuple(expected[k] for k in ("version", "sep_style", "system", "roles", "sep", "sep2")), name
    for part, name in recorded["mode_mapping"].items():
        assert template_of_released_model(f"org/{part.upper()}-x") == name


@pytest.mark.parametrize("name", EXPLICIT)
def test_supervised_text_is_the_answers_and_their_ends(name):
    supervised = [piece.text.strip(" ") for piece in get_template(name).pieces(DIALOGUE) if piece.supervised]
    assert [text.split(".")[0] for text in supervised] == ["There", "Yes"]
    assert all(len(text.split(".")[1]) > 0 for text in supervised)


@pytest.mark.parametrize("name", EXPLICIT)
@given(texts=st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=6))
def test_joined_pieces_are_the_render(name, texts):
    turns = [Turn((USER, ASSISTANT)[i % 2], text) for i, text in enumerate(texts)]
    for prompt in (False, True):
        pieces = get_template(name).pieces(turns, prompt)
        assert "".join(piece.text for piece in pieces) == get_template(name).render(turns, prompt)
        spoken = [turn.text for turn in turns if turn.role == ASSISTANT]
        marked = [piece.text for piece in pieces if piece.supervised]
        assert len(spoken) == len(marked) and all(a in b for a, b in zip(spoken, marked, strict=True))


@pytest.mark.parametrize("name", ["plain", "v0_plain"])
def test_plain_ends_each_text_by_a_line_break(name):
    """The original cannot render a second message: it has no separator for it."""
    assert get_template(name).render(DIALOGUE[:2]) == "Where?\nThere.\n"


def test_llama_3_closes_only_the_last_answer_by_end_of_text():
    supervised = [piece.text for piece in get_template("llama_3").pieces(DIALOGUE) if piece.supervised]
    assert supervised == ["There.<|eot_id|>", "Yes.<|end_of_text|>"]
    assert get_template("llama_3").render(DIALOGUE[:1], True).endswith("assistant<|end_header_id|>\n\n")


def test_auto_renders_through_the_tokenizer_and_supervises_the_end_but_not_the_newline_after_it():
    pieces = get_template("auto").pieces(DIALOGUE, tokenizer=ChatTokenizer(CHATML))
    assert [piece.text for piece in pieces if piece.supervised] == ["There.<|im_end|>", "Yes.<|im_end|>"]
    rendered = get_template("auto").render(DIALOGUE[:1], True, tokenizer=ChatTokenizer(CHATML))
    assert rendered == "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"


def test_auto_without_a_chat_template_says_what_to_do():
    with pytest.raises(ValueError, match=r"needs a tokenizer with a chat_template.*'llama_3'"):
        get_template("auto").render(DIALOGUE, tokenizer=ChatTokenizer(None))


def test_auto_refuses_a_chat_template_that_rewrites_earlier_answers():
    forgetful = "{% for m in messages %}{% if loop.last %}[{{ m['content'] }}]{% endif %}{% endfor %}"
    with pytest.raises(ValueError, match="rewrites turn 1"):
        get_template("auto").pieces(DIALOGUE, tokenizer=ChatTokenizer(forgetful))


def test_an_unknown_template_suggests_the_nearest():
    with pytest.raises(KeyError, match="did you mean 'llama_3'"):
        get_template("llama3")


def test_messages_of_both_spellings_are_understood():
    llava = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    openai = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert get_template("v1").render(llava) == get_template("v1").render(openai)
    with pytest.raises(ValueError, match=r"from 'robot', expected one of human"):
        get_template("v1").render([{"from": "robot", "value": "a"}])
    with pytest.raises(ValueError, match="says None, expected a string"):
        get_template("v1").render([{"from": "human"}])


def test_templates_cannot_be_changed():
    with pytest.raises(AttributeError):
        get_template("v1").system = "x"
    assert get_template("v1").without_system().system == ""
    assert get_template("v1").system
