"""Text to ids and back: special tokens, labels from marked pieces, stop tokens, and a small tokenizer of our own."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX

logger = logging.getLogger(__name__)

Tokenizer = Any
"""A fast tokenizer of transformers; not named, so that this module imports without it."""


@dataclass(frozen=True, kw_only=True)
class TokenizationCompat:
    """How the text of older weights was cut; stored in the checkpoint as `tokenization_compat`.

    Attributes:
        double_bos: True keeps both beginning-of-text tokens where the template writes one and the tokenizer adds one.
        chunkwise: True tokenises the text between two pictures on its own (VILA-1.5, NaVILA, LLaVA-1.5);
            False tokenises the whole text with `<image>` as a token.
    """

    double_bos: bool = False
    chunkwise: bool = False

    @classmethod
    def navila(cls) -> TokenizationCompat:
        """What the published NaVILA and VILA-1.5 weights were trained with."""
        return cls(double_bos=True, chunkwise=True)

    @classmethod
    def from_config(cls, stored: TokenizationCompat | Mapping[str, bool] | None) -> TokenizationCompat:
        """From the checkpoint's dict; None is the default."""
        return stored if isinstance(stored, TokenizationCompat) else cls(**(stored or {}))


@runtime_checkable
class Marked(Protocol):
    """A stretch of text; supervised says whether the model learns to say it. Conversation.pieces yields these."""

    @property
    def text(self) -> str: ...
    @property
    def supervised(self) -> bool: ...


def ensure_special_tokens(tokenizer: Tokenizer) -> int:
    """Make sure that `<image>` is one token and that padding is possible; changes the tokenizer in memory.

    The id may lie beyond the embedding table: its row is never read.

    Returns:
        The id of `<image>`.
    """
    if _known_id(DEFAULT_IMAGE_TOKEN, tokenizer) is None:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [DEFAULT_IMAGE_TOKEN]}, replace_extra_special_tokens=False
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token if tokenizer.unk_token is None else tokenizer.unk_token
    return tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)


def _known_id(token: str, tokenizer: Tokenizer) -> int | None:
    """Id of a token; None where it is not in the vocabulary (without building the vocabulary's dict)."""
    found = tokenizer.convert_tokens_to_ids(token)
    return found if found is not None and tokenizer.convert_ids_to_tokens(found) == token else None


def tokenize_text(
    text: str, tokenizer: Tokenizer, *, compat: TokenizationCompat, image_token_id: int = IMAGE_TOKEN_INDEX
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of a text with its `<image>` placeholders, one id each, and the characters [start, end) each id stands for.

    Placeholders and tokens that the tokenizer adds stand for no character (start == end).
    """
    chunks = text.split(DEFAULT_IMAGE_TOKEN) if compat.chunkwise else [text]
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    start = 0
    for index, chunk in enumerate(chunks):
        encoded = tokenizer(chunk, return_offsets_mapping=True)
        drop = 1 if index and encoded.input_ids[:1] == [tokenizer.bos_token_id] else 0
        if index:
            ids.append(image_token_id)
            spans.append((start - len(DEFAULT_IMAGE_TOKEN), start - len(DEFAULT_IMAGE_TOKEN)))
        ids += encoded.input_ids[drop:]
        spans += [(start + a, start + b) for a, b in encoded.offset_mapping[drop:]]
        start += len(chunk) + len(DEFAULT_IMAGE_TOKEN)
    if not compat.chunkwise:
        ids, spans = _map_image_token(ids, spans, tokenizer, image_token_id)
    bos = tokenizer.bos_token_id
    if not compat.double_bos and bos is not None and ids[:2] == [bos, bos]:
        ids, spans = ids[1:], spans[1:]
    return ids, spans


def _map_image_token(
    ids: list[int], spans: list[tuple[int, int]], tokenizer: Tokenizer, image_token_id: int
) -> tuple[list[int], list[tuple[int, int]]]:
    known = _known_id(DEFAULT_IMAGE_TOKEN, tokenizer)
    if known is None:
        raise ValueError(
            f"the tokenizer does not know {DEFAULT_IMAGE_TOKEN}; call ensure_special_tokens(tokenizer) first"
        )
    is_image = [token == known for token in ids]
    ids = [image_token_id if image else token for token, image in zip(ids, is_image, strict=True)]
    return ids, [(a, a) if image else (a, b) for (a, b), image in zip(spans, is_image, strict=True)]


def encode_marked(
    pieces: Sequence[Marked],
    tokenizer: Tokenizer,
    *,
    compat: TokenizationCompat,
    image_token_id: int = IMAGE_TOKEN_INDEX,
) -> tuple[list[int], list[int]]:
    """Ids of the joined text and labels: an id is trained when it stands for a character of a supervised piece.

    The first id is never trained. A token that lies half in a supervised piece is trained as a whole, because the
    model must choose it as a whole.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{type(tokenizer).__name__} gives no character offsets; load it with use_fast=True")
    text = "".join(piece.text for piece in pieces)
    ids, spans = tokenize_text(text, tokenizer, compat=compat, image_token_id=image_token_id)
    supervised = bytearray(len(text) + 1)
    start = 0
    for piece in pieces:
        if piece.supervised:
            supervised[start : start + len(piece.text)] = b"\1" * len(piece.text)
        start += len(piece.text)
    labels = [
        token if a < b and any(supervised[a:b]) else IGNORE_INDEX for token, (a, b) in zip(ids, spans, strict=True)
    ]
    labels[:1] = [IGNORE_INDEX] * len(labels[:1])
    return ids, labels


def tokenize_conversation(
    messages: Sequence[Any],
    tokenizer: Tokenizer,
    template: Any,
    *,
    add_generation_prompt: bool = False,
    compat: TokenizationCompat | None = None,
    image_token_id: int = IMAGE_TOKEN_INDEX,
) -> list[int]:
    """Ids of a dialogue laid out by `template` (a `Conversation`), one `image_token_id` per `<image>`."""
    text = template.render(messages, add_generation_prompt, tokenizer=tokenizer)
    ids, _ = tokenize_text(text, tokenizer, compat=compat or TokenizationCompat(), image_token_id=image_token_id)
    return ids


def infer_stop_tokens(tokenizer: Tokenizer, template: Any) -> list[str]:
    """Tokens that may end an answer: end of text, and the token that follows an answer in the template.

    Where the template's separator is several tokens to this tokenizer, the first of them is meant.
    """
    messages = [{"from": ("human", "gpt")[i % 2], "value": f"{i}"} for i in range(10)]
    pieces = template.pieces(messages, tokenizer=tokenizer)
    text = "".join(piece.text for piece in pieces)
    ids, spans = tokenize_text(text, tokenizer, compat=TokenizationCompat(chunkwise=True))
    stops, end, answers = {tokenizer.eos_token}, 0, 0
    for piece in pieces:
        end += len(piece.text)
        if piece.supervised:
            answer = messages[2 * answers + 1]["value"]
            answer_end = end - len(piece.text) + piece.text.index(answer) + len(answer)
            after = next(token for token, (_, b) in zip(ids, spans, strict=True) if b > answer_end)
            stops.add(tokenizer.convert_ids_to_tokens(after))
            answers += 1
    return sorted(stop for stop in stops if stop is not None)


LLAMA_3_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    DEFAULT_IMAGE_TOKEN,
    "[PAD]",
)
_WORDS = r"↑{1,3}|←{1,3}|→{1,3}| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\r?\n|\s+"
_WORDS_IN_PYTHON = re.compile(
    _WORDS.replace(r"\p{L}", r"[^\W\d_]").replace(r"[^\s\p{L}\p{N}]", r"(?:[^\w\s]|_)").replace(r"\p{N}", r"\d")
)


def train_tokenizer(
    corpus: Iterable[str], vocab_size: int, out_dir: str | Path, phrases: Sequence[str] = ()
) -> Tokenizer:
    """Write a byte-level BPE tokenizer with the special tokens of Llama 3, to be read by AutoTokenizer.

    Frequent words (with the space before them), runs of one to three arrows and single digits are one token each.
    The files depend on the corpus only. Any text can be written: the 256 bytes are always in the vocabulary.

    Args:
        vocab_size: at most, special tokens and the 256 bytes included; too small a size leaves rare words in several
            tokens, a small corpus yields a smaller vocabulary.
        phrases: texts that stand word for word in every prompt; each becomes one more token, whatever it contains.

    Raises:
        ValueError: for a vocabulary that cannot hold the bytes, or an empty corpus.
    """
    counts: Counter[str] = Counter()
    for text in corpus:
        counts.update(_WORDS_IN_PYTHON.findall(text))
    smallest = 256 + len(LLAMA_3_SPECIALS)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size is {vocab_size}, expected at least {smallest} (256 bytes and the special tokens)")
    if not counts:
        raise ValueError("the corpus has no words; give at least one non-empty text")
    backend = _byte_level_bpe(counts, vocab_size - len(LLAMA_3_SPECIALS))
    return _save_llama_3_style(backend, Path(out_dir), phrases)


def _byte_level_bpe(counts: Counter[str], vocab_size: int) -> Any:
    """Half of the room beyond the bytes goes to merges, the rest to whole words in order of frequency.

    Last come the same words without the space before them: a short answer stands alone.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers

    frequent = [word for word, count in counts.items() if count > 1 or word.strip(" ↑←→") in ("", "STOP")]
    words = sorted(frequent, key=lambda word: (-counts[word], word))
    words += [word[1:] for word in words if word[0] == " " and len(word) > 1]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = vocab_size - len(alphabet)
    trained = Backend(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + room // 2, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    repeated = (word for word in sorted(counts) for _ in range(min(counts[word], 200)))
    trained.train_from_iterator(repeated, trainer)
    merged = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    vocab = {token: index for index, (token, _) in enumerate(merged)}
    for word in words:
        ((as_bytes, _),) = trained.pre_tokenizer.pre_tokenize_str(word)
        if len(vocab) >= vocab_size:
            logger.info("tokenizer of %d tokens is full: '%s' (seen %d times) is split", vocab_size, word, counts[word])
            break
        vocab.setdefault(as_bytes, len(vocab))
    return Backend(models.BPE(vocab=vocab, merges=_merges_of(trained), ignore_merges=True))


def _merges_of(backend: Any) -> list[tuple[str, str]]:
    import json

    return [(a, b) for a, b in json.loads(backend.to_str())["model"]["merges"]]


def _save_llama_3_style(backend: Any, out_dir: Path, phrases: Sequence[str]) -> Tokenizer:
    from tokenizers import AddedToken, Regex, decoders, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in LLAMA_3_SPECIALS])
    backend.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
    bos, eos = LLAMA_3_SPECIALS[:2]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        pad_token="[PAD]",
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    tokenizer.save_pretrained(out_dir)
    return tokenizer
