"""Separators are real tokens: known to the tokenizer, with rows that start at the mean, saved with both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llava.model.scene_split import SEPARATOR_TOKENS, Separators, add_separators
from llava.utils.tokenizer import ensure_special_tokens
from tests.unit.model.scene_split.toy import make_tokenizer


def make_llm(rows: int, **config: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    settings = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, **config}
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, **settings))


def tables(llm: Any) -> list[torch.Tensor]:
    return [llm.get_input_embeddings().weight, llm.get_output_embeddings().weight]


def ids_of(separators: Separators) -> list[int]:
    return [*separators.around("background"), *separators.around("objects")]


@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_are_the_mean_of_the_old_ones_and_the_old_ones_stay(tied: bool):
    tokenizer, llm = make_tokenizer(), make_llm(12, tie_word_embeddings=tied)
    before = [table.detach().clone() for table in tables(llm)]
    separators = add_separators(tokenizer, llm)
    assert ids_of(separators) == [12, 13, 14, 15]
    for table, old in zip(tables(llm), before, strict=True):
        assert table.shape[0] == 16
        assert torch.equal(table[:12], old)
        assert all(torch.equal(row, old.mean(0)) for row in table[12:])
    assert (tables(llm)[0] is tables(llm)[1]) == tied
    assert llm.config.vocab_size == 16


def test_each_separator_is_one_token_of_a_text():
    tokenizer, llm = make_tokenizer(), make_llm(12)
    separators = add_separators(tokenizer, llm)
    text = "w0 [BG_START] w1 [BG_END] [OBJ_START] [OBJ_END] w2"
    ids = tokenizer(text).input_ids
    assert [value for value in ids if value >= 12] == ids_of(separators)
    assert len(ids) == 7


def test_a_table_with_rows_to_spare_is_not_resized_and_its_rows_are_set():
    tokenizer, llm = make_tokenizer(), make_llm(64)
    with torch.no_grad():
        tables(llm)[0][12:] = 100.0  # rows that no token has
    before = tables(llm)[0].detach().clone()
    add_separators(tokenizer, llm)
    table = tables(llm)[0]
    assert table.shape[0] == 64
    assert torch.equal(table[12:16], before[:12].mean(0).expand(4, -1))
    assert torch.equal(table[16:], before[16:])


def test_a_tokenizer_that_is_longer_than_the_table_is_caught_up_with():
    tokenizer, llm = make_tokenizer(), make_llm(12)
    image = ensure_special_tokens(tokenizer)  # its id lies beyond the table
    separators = add_separators(tokenizer, llm)
    assert (image, ids_of(separators)) == (12, [13, 14, 15, 16])
    assert tables(llm)[0].shape[0] == 17
    assert torch.equal(tables(llm)[0][12], tables(llm)[0][13])


def test_adding_twice_keeps_what_was_learned():
    tokenizer, llm = make_tokenizer(), make_llm(12)
    first = add_separators(tokenizer, llm)
    with torch.no_grad():
        tables(llm)[0][12:] = torch.arange(4.0)[:, None]
    assert add_separators(tokenizer, llm) == first
    assert tables(llm)[0][12:, 0].tolist() == [0, 1, 2, 3]
    assert len(tokenizer) == tables(llm)[0].shape[0] == 16


def test_a_language_model_of_another_run_gets_rows_for_a_tokenizer_that_has_them():
    tokenizer = make_tokenizer()
    add_separators(tokenizer, make_llm(12))
    llm = make_llm(12)
    old = tables(llm)[0].detach().clone()
    add_separators(tokenizer, llm)
    assert torch.equal(tables(llm)[0][12:], old.mean(0).expand(4, -1))


def test_tokenizer_and_rows_survive_a_folder(tmp_path: Path):
    tokenizer, llm = make_tokenizer(), make_llm(12)
    separators = add_separators(tokenizer, llm)
    tokenizer.save_pretrained(tmp_path)
    llm.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert Separators.of(again) == separators
    assert [again.decode([row]) for row in ids_of(separators)] == list(SEPARATOR_TOKENS)
    assert torch.equal(tables(LlamaForCausalLM.from_pretrained(tmp_path))[0], tables(llm)[0])
    assert again.decode([4, 12, 5], skip_special_tokens=True).split() == ["w0", "w1"]


def test_half_precision_takes_the_mean_in_full_precision():
    tokenizer, llm = make_tokenizer(), make_llm(12).to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    expected = tables(llm)[0][:12].float().mean(0).to(torch.bfloat16)
    add_separators(tokenizer, llm)
    assert torch.equal(tables(llm)[0][12], expected)
