"""How a dialogue is laid out as one text, and which of its characters the model learns to say.

A template is a frozen value. It gives the text in pieces, each marked supervised or not, so that labels follow from the
construction and never from searching the answer in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from llava.utils.registry import Registry


class SeparatorStyle(Enum):
    """How system text, roles, turns and separators are joined."""

    AUTO = auto()  # by the tokenizer's own chat template
    SINGLE = auto()  # "role: text" + sep
    TWO = auto()  # the same with sep and sep2 in turn
    MPT = auto()  # role + text + sep
    LLAMA_3 = auto()  # role + text + sep, the last one sep2
    LLAMA_2 = auto()  # [INST] question [/INST] answer
    MISTRAL = auto()  # the same with other spaces
    PLAIN = auto()  # text + sep


USER, ASSISTANT = "user", "assistant"
_ROLES = {"human": USER, "user": USER, "gpt": ASSISTANT, "assistant": ASSISTANT}


@dataclass(frozen=True)
class Turn:
    """What one side says; text None is the open turn of the assistant that generation fills."""

    role: str
    text: str | None

    @classmethod
    def parse(cls, message: Turn | Mapping[str, Any]) -> Turn:
        """From {"from": "human" | "gpt", "value": ...} or {"role": "user" | "assistant", "content": ...}."""
        if isinstance(message, Turn):
            return message
        role, text = message.get("from", message.get("role")), message.get("value", message.get("content"))
        if role not in _ROLES:
            raise ValueError(f"a turn is from {role!r}, expected one of {', '.join(_ROLES)}: {dict(message)}")
        if not isinstance(text, str):
            raise ValueError(f"a turn says {text!r}, expected a string: {dict(message)}")
        return cls(_ROLES[role], text)


@dataclass(frozen=True)
class TextPiece:
    """A stretch of the rendered text. supervised: True for an answer and the separator that ends it."""

    text: str
    supervised: bool = False


Messages = Sequence[Turn | Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A template.

    Attributes:
        examples: turns of a canned exchange shown before the dialogue where `examples=True` is asked for.
        version: name that older configs store instead of the template name.
    """

    style: SeparatorStyle
    system: str = ""
    roles: tuple[str, str] = ("", "")
    sep: str = "\n"
    sep2: str | None = None
    examples: tuple[Turn, ...] = ()
    version: str = "Unknown"

    def without_system(self) -> Conversation:
        """The same template with an empty system text."""
        return replace(self, system="")

    def role_text(self, role: str) -> str:
        return self.roles[0 if role == USER else 1]

    def pieces(
        self,
        turns: Messages,
        add_generation_prompt: bool = False,
        *,
        examples: bool = False,
        tokenizer: Any = None,
    ) -> list[TextPiece]:
        """The text cut where supervision begins or ends; joined it is `render` of the same arguments.

        Args:
            add_generation_prompt: end with the open turn of the assistant.
            tokenizer: gives the chat template; needed by the style AUTO and only there.
        """
        parsed = [*(self.examples if examples else ()), *(Turn.parse(turn) for turn in turns)]
        if self.style is SeparatorStyle.AUTO:
            return list(_auto_pieces(parsed, add_generation_prompt, tokenizer))
        if add_generation_prompt:
            parsed.append(Turn(ASSISTANT, None))
        return [piece for piece in _LAYOUTS[self.style](self, parsed) if piece.text]

    def render(self, turns: Messages, add_generation_prompt: bool = False, **options: Any) -> str:
        """The whole text; options as for `pieces`."""
        return "".join(piece.text for piece in self.pieces(turns, add_generation_prompt, **options))


def _said(turn: Turn, text: str) -> TextPiece:
    return TextPiece(text, supervised=turn.role == ASSISTANT)


def _colon_layout(template: Conversation, turns: Sequence[Turn]) -> Iterator[TextPiece]:
    """SINGLE and TWO."""
    ends = [template.sep, template.sep if template.style is SeparatorStyle.SINGLE else template.sep2 or ""]
    yield TextPiece(template.system + template.sep)
    for index, turn in enumerate(turns):
        yield TextPiece(template.role_text(turn.role) + (": " if turn.text else ":"))
        if turn.text:
            yield _said(turn, turn.text + ends[index % 2])


def _header_layout(template: Conversation, turns: Sequence[Turn]) -> Iterator[TextPiece]:
    """MPT and LLAMA_3; the latter closes the last message by sep2."""
    last = template.sep if template.style is SeparatorStyle.MPT else template.sep2 or template.sep
    yield TextPiece(template.system + template.sep)
    for index, turn in enumerate(turns):
        yield TextPiece(template.role_text(turn.role))
        if turn.text:
            yield _said(turn, turn.text + (last if index == len(turns) - 1 else template.sep))


def _inst_layout(template: Conversation, turns: Sequence[Turn]) -> Iterator[TextPiece]:
    """LLAMA_2 and MISTRAL: the first question carries the system text."""
    is_llama = template.style is SeparatorStyle.LLAMA_2
    system = template.system
    if system:
        system = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if is_llama else f"{system}\n"
    yield TextPiece("" if is_llama else "<s>")
    for index, turn in enumerate(turns):
        if turn.role == USER:
            start = template.sep if index else ""
            yield TextPiece(f"{start}[INST] {system if index == 0 else ''}{turn.text} [/INST]")
        elif turn.text and is_llama:
            yield _said(turn, f" {turn.text} {template.sep2}")
        elif turn.text:
            yield _said(turn, f"{turn.text}{template.sep2}")


def _plain_layout(template: Conversation, turns: Sequence[Turn]) -> Iterator[TextPiece]:
    yield TextPiece(template.system)
    for turn in turns:
        if turn.text:
            yield _said(turn, turn.text + template.sep)


_LAYOUTS: Mapping[SeparatorStyle, Callable[[Conversation, Sequence[Turn]], Iterator[TextPiece]]] = {
    SeparatorStyle.SINGLE: _colon_layout,
    SeparatorStyle.TWO: _colon_layout,
    SeparatorStyle.MPT: _header_layout,
    SeparatorStyle.LLAMA_3: _header_layout,
    SeparatorStyle.LLAMA_2: _inst_layout,
    SeparatorStyle.MISTRAL: _inst_layout,
    SeparatorStyle.PLAIN: _plain_layout,
}


def _auto_pieces(turns: Sequence[Turn], add_generation_prompt: bool, tokenizer: Any) -> Iterator[TextPiece]:
    """Rendered turn by turn: what a turn adds to the text belongs to it."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            "template 'auto' needs a tokenizer with a chat_template, "
            f"got {'none' if tokenizer is None else type(tokenizer).__name__ + ' without one'}; "
            "name a template such as 'llama_3' or set tokenizer.chat_template"
        )

    def text_of(count: int, prompt: bool) -> str:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns[:count]]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)

    done, whole = 0, text_of(len(turns), add_generation_prompt)
    for index, turn in enumerate(turns):
        if turn.role != ASSISTANT or not turn.text:
            continue
        upto = text_of(index + 1, False)
        start = upto.rfind(turn.text)
        if start < done or not whole.startswith(upto):
            raise ValueError(
                f"the chat template rewrites turn {index} ({turn.text[:40]!r}) when later turns follow; "
                "labels cannot be given, name a template instead of 'auto'"
            )
        end = max(len(upto.rstrip()), start + len(turn.text))
        yield TextPiece(whole[done:start])
        yield TextPiece(whole[start:end], supervised=True)
        done = end
    if whole[done:]:
        yield TextPiece(whole[done:])


_CURIOUS = (
    "A chat between a curious {0} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {0}'s questions."
)
_HELPFUL = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_TAGGED = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant is able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
_SAFE = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
_ENERGY = (
    Turn(USER, "What are the key differences between renewable and non-renewable energy sources?"),
    Turn(
        ASSISTANT,
        "Renewable energy sources are those that can be replenished naturally in a relatively short amount of "
        "time, such as solar, wind, hydro, geothermal, and biomass. Non-renewable energy sources, on the other "
        "hand, are finite and will eventually be depleted, such as coal, oil, and natural gas. Here are some key "
        "differences between renewable and non-renewable energy sources:\n"
        "1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable energy "
        "sources are finite and will eventually run out.\n"
        "2. Environmental impact: Renewable energy sources have a much lower environmental impact than "
        "non-renewable sources, which can lead to air and water pollution, greenhouse gas emissions, and other "
        "negative effects.\n"
        "3. Cost: Renewable energy sources can be more expensive to initially set up, but they typically have "
        "lower operational costs than non-renewable sources.\n"
        "4. Reliability: Renewable energy sources are often more reliable and can be used in more remote "
        "locations than non-renewable sources.\n"
        "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to different "
        "situations and needs, while non-renewable sources are more rigid and inflexible.\n"
        "6. Sustainability: Renewable energy sources are more sustainable over the long term, while non-renewable "
        "sources are not, and their depletion can lead to economic and social instability.\n",
    ),
)

_HUMAN_ROLES, _UPPER_ROLES = ("Human", "Assistant"), ("USER", "ASSISTANT")
_CHATML_ROLES = ("<|im_start|>user\n", "<|im_start|>assistant\n")
_LLAMA_3_ROLES = tuple(f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in (USER, ASSISTANT))


def _single(system: str, examples: tuple[Turn, ...] = (), version: str = "Unknown") -> Conversation:
    return Conversation(
        style=SeparatorStyle.SINGLE, system=system, roles=_HUMAN_ROLES, sep="###", examples=examples, version=version
    )


def _two(system: str, version: str = "v1") -> Conversation:
    return Conversation(
        style=SeparatorStyle.TWO, system=system, roles=_UPPER_ROLES, sep=" ", sep2="</s>", version=version
    )


def _inst(style: SeparatorStyle, system: str, sep: str, version: str) -> Conversation:
    return Conversation(style=style, system=system, roles=_UPPER_ROLES, sep=sep, sep2="</s>", version=version)


def _chatml(system: str, version: str) -> Conversation:
    return Conversation(
        style=SeparatorStyle.MPT,
        system=f"<|im_start|>system\n{system}",
        roles=_CHATML_ROLES,
        sep="<|im_end|>",
        version=version,
    )


TEMPLATES: Registry[Conversation] = Registry("conversation template")
TEMPLATES.register("auto")(Conversation(style=SeparatorStyle.AUTO))
TEMPLATES.register("default", "v0")(_single(_CURIOUS.format("human"), _ENERGY))
TEMPLATES.register("llava_v0")(_single(_CURIOUS.format("human")))
TEMPLATES.register("v0_mmtag")(_single(_TAGGED, version="v0_mmtag"))
TEMPLATES.register("v1", "vicuna_v1")(_two(_CURIOUS.format("user")))
TEMPLATES.register("vicuna_v1_nosys")(_two("", "v1_nosys"))
TEMPLATES.register("llava_v1")(_two(_CURIOUS.format("human")))
TEMPLATES.register("v1_mmtag")(_two(_TAGGED, "v1_mmtag"))
TEMPLATES.register("llama_2")(_inst(SeparatorStyle.LLAMA_2, _SAFE, "<s>", "llama_v2"))
TEMPLATES.register("llava_llama_2")(_inst(SeparatorStyle.LLAMA_2, _HELPFUL, "<s>", "llama_v2"))
TEMPLATES.register("mistral")(_inst(SeparatorStyle.MISTRAL, "", "", "mistral"))
TEMPLATES.register("mistral_instruct")(_inst(SeparatorStyle.LLAMA_2, "", "", "llama_v2"))
TEMPLATES.register("mpt")(
    _chatml(
        "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers.",
        "mpt",
    )
)
TEMPLATES.register("hermes-2")(_chatml("Answer the questions.", "hermes-2"))
TEMPLATES.register("chatml_direct", "mistral_direct")(_chatml("Answer the questions.", "mpt"))
TEMPLATES.register("plain", "v0_plain")(Conversation(style=SeparatorStyle.PLAIN))
TEMPLATES.register("llama_3")(
    Conversation(
        style=SeparatorStyle.LLAMA_3,
        system=f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{_HELPFUL}",
        roles=(_LLAMA_3_ROLES[0], _LLAMA_3_ROLES[1]),
        sep="<|eot_id|>",
        sep2="<|end_of_text|>",
        version="llama_v3",
    )
)


def get_template(name: str) -> Conversation:
    """The template of that name; an unknown name is answered with the nearest one (KeyError)."""
    return TEMPLATES[name]


RELEASED_MODELS: Mapping[str, str] = {
    "vila1.5-3b": "vicuna_v1",
    "vila1.5-8b": "llama_3",
    "vila1.5-13b": "vicuna_v1",
    "vila1.5-40b": "hermes-2",
    "nvila15b": "vicuna_v1",
    "llama-2": "llava_llama_2",
    "llama2": "llava_llama_2",
    "llama-3": "llama_3",
    "llama3": "llama_3",
    "mpt": "mpt",
}
"""Template by a part of the name of a published checkpoint. Only for checkpoints that do not store their template."""


def template_of_released_model(name: str) -> str | None:
    """Name of the template that a published checkpoint was trained with; None when its name is not known."""
    return next((template for part, template in RELEASED_MODELS.items() if part in name.lower()), None)
