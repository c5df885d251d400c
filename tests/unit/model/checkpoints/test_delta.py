"""Deltas: base + (target - base) is the target, whatever the files; and a base that is not the right one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import llava
from llava.model import apply_delta, make_delta
from llava.model.checkpoints.difference import add, best_type, subtract
from llava.model.checkpoints.pairs import EMBEDDINGS, HEAD, MARK
from tests.unit.model.checkpoints.folders import (
    edit_json,
    model_of,
    original_config,
    original_state,
    same_weights,
    save_state,
)

HALF = 2.0**-8  # half a step of bfloat16 between 1 and 2, where the largest differences lie; measured worst: 2^-8
IMAGE = 59


@pytest.fixture(scope="module")
def base_state() -> dict[str, Tensor]:
    """A language model with fewer tokens than the target."""
    state = dict(model_of(seed=1).llm.state_dict())
    return {name: value[:50] if name in (EMBEDDINGS, HEAD) else value for name, value in state.items()}


@pytest.fixture(scope="module")
def target() -> Any:
    return model_of(seed=2)


def write_base(state: dict[str, Tensor], root: Path, kind: str = "safetensors") -> Path:
    save_state(state, root / "base", kind)
    (root / "base" / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 50}))
    return root / "base"


def write_target(target: Any, root: Path, kind: str = "safetensors", dtype: Any = None) -> Path:
    state = original_state(target, tower=False)
    save_state({name: value.to(dtype or value.dtype) for name, value in state.items()}, root / "target", kind)
    (root / "target" / "config.json").write_text(json.dumps(original_config(target, "./tower")))
    (root / "target" / "special_tokens_map.json").write_text("{}")
    target.vision_tower.vision_tower.save_pretrained(root / "tower")
    return root / "target"


def all_weights(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def make(root: Path, *flags: str) -> int:
    paths = ["--base-model-path", str(root / "base"), "--target-model-path", str(root / "target")]
    return make_delta.main([*paths, "--delta-path", str(root / "delta"), *flags])


def apply(root: Path, *flags: str) -> int:
    paths = ["--base-model-path", str(root / "base"), "--target-model-path", str(root / "again")]
    return apply_delta.main([*paths, "--delta-path", str(root / "delta"), *flags])


@pytest.mark.parametrize("kind", ["safetensors", "safetensors shards", "bin", "bin shards"])
def test_float32_comes_back_to_the_bit(base_state: Any, target: Any, tmp_path: Path, capsys: Any, kind: str):
    """Base and target are strangers here, so that many differences are larger than the weights."""
    write_base(base_state, tmp_path, kind)
    write_target(target, tmp_path, kind)
    assert make(tmp_path, "--max-shard-size", "20KB") == 0
    assert "base + delta is the model to the bit" in capsys.readouterr().out
    assert apply(tmp_path, "--max-shard-size", "20KB") == 0
    again = tmp_path / "again"
    assert (again / "model.safetensors.index.json").is_file()
    expected = original_state(target, tower=False)
    found = all_weights(again)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    written = json.loads((tmp_path / "target" / "config.json").read_text())
    assert json.loads((again / "config.json").read_text()) == written
    assert (again / "special_tokens_map.json").is_file()
    assert same_weights(llava.load(again), target)


def test_half_precision_stays_in_its_type_and_says_what_it_loses(
    base_state: Any, target: Any, tmp_path: Path, capsys: Any
):
    write_base({name: value.bfloat16() for name, value in base_state.items()}, tmp_path)
    write_target(target, tmp_path, dtype=torch.bfloat16)
    assert make(tmp_path) == 0
    assert "numbers come back differently, by at most 0.00391 (see --exact)" in capsys.readouterr().out
    assert apply(tmp_path) == 0
    expected, found = all_weights(tmp_path / "target"), all_weights(tmp_path / "again")
    assert {value.dtype for value in all_weights(tmp_path / "delta").values()} == {torch.bfloat16}
    errors = [(found[name].float() - expected[name].float()).abs().max().item() for name in expected]
    assert 0 < max(errors) <= HALF


def test_half_precision_comes_back_to_the_bit_when_asked(base_state: Any, target: Any, tmp_path: Path, capsys: Any):
    write_base({name: value.half() for name, value in base_state.items()}, tmp_path)
    write_target(target, tmp_path, dtype=torch.float16)
    assert make(tmp_path, "--exact") == 0
    assert "to the bit; " in capsys.readouterr().out
    assert apply(tmp_path) == 0
    expected, found = all_weights(tmp_path / "target"), all_weights(tmp_path / "again")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {value.dtype for value in found.values()} == {torch.float16}


def test_what_fine_tuning_moves_needs_no_wider_type(target: Any, tmp_path: Path, capsys: Any):
    base = {name: value.bfloat16() for name, value in target.llm.state_dict().items()}
    write_base({name: value * 1.02 for name, value in base.items()}, tmp_path)
    write_target(target, tmp_path, dtype=torch.bfloat16)
    assert make(tmp_path) == 0
    assert capsys.readouterr().out.strip().endswith("base + delta is the model to the bit")


def test_a_sum_by_hand():
    base, target = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.5, 2.0], [7.0, 8.0]])
    difference = subtract(target, base, torch.float32)
    assert difference.tolist() == [[0.5, 0.0], [7.0, 8.0]]  # a row that the base has not is kept
    assert torch.equal(add(difference, base, torch.float32), target)
    assert add(torch.zeros(1, 2), torch.ones(3, 2), torch.float32).tolist() == [[1.0, 1.0]]
    tiny, one = torch.tensor([1e-8]), torch.tensor([1.0])  # 1e-8 - 1 has no room in float32
    assert best_type(tiny, one, exact=True).dtype == torch.float64
    lossy = best_type(tiny, one, exact=False)
    assert (lossy.dtype, lossy.num_changed) == (torch.float32, 1)
    assert lossy.worst == pytest.approx(1e-8)


def test_a_delta_is_loaded_in_one_call(base_state: Any, target: Any, tmp_path: Path):
    write_base(base_state, tmp_path)
    write_target(target, tmp_path)
    make(tmp_path)
    assert same_weights(llava.load(tmp_path / "delta"), target)  # the base that it names lies beside it
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"holds a delta to 'base', which is not beside it.*model_base="):
        llava.load(tmp_path / "delta")
    assert same_weights(llava.load(tmp_path / "delta", model_base=str(tmp_path / "elsewhere")), target)
    half = llava.load(tmp_path / "delta", model_base=str(tmp_path / "elsewhere"), dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_the_base_may_be_a_llava_itself(target: Any, tmp_path: Path):
    other = model_of(seed=5)
    save_state(original_state(other), tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text(json.dumps(original_config(other, "./tower")))
    write_target(target, tmp_path)
    make(tmp_path)
    apply(tmp_path)
    assert same_weights(llava.load(tmp_path / "again"), target)


def test_an_old_delta_without_a_mark_is_applied_by_the_command(base_state: Any, target: Any, tmp_path: Path):
    base = write_base({name: value.half() for name, value in base_state.items()}, tmp_path, "bin shards")
    wanted = {name: value.half() for name, value in original_state(target, tower=False).items()}
    stored = {name: value.half() for name, value in base_state.items()}
    old = {name: subtract(value, stored[name], value.dtype) if name in stored else value
           for name, value in wanted.items()}  # fmt: skip
    old["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)  # as old files have it
    save_state(old, tmp_path / "delta", "bin")
    (tmp_path / "delta" / "config.json").write_text(json.dumps(original_config(target, "./tower")))
    (base / "tokenizer.model").write_text("pieces")
    assert apply(tmp_path) == 0
    found = all_weights(tmp_path / "again")
    assert found.keys() == wanted.keys()
    assert max((found[name].float() - wanted[name].float()).abs().max().item() for name in wanted) <= HALF
    assert (tmp_path / "again" / "tokenizer.model").read_text() == "pieces"


def test_tied_heads_need_not_be_stored(target: Any, tmp_path: Path):
    state = original_state(target, tower=False)
    del state[HEAD]
    save_state(state, tmp_path / "target")
    (tmp_path / "target" / "config.json").write_text(
        json.dumps({**original_config(target, "./tower"), "tie_word_embeddings": True})
    )
    target.vision_tower.vision_tower.save_pretrained(tmp_path / "tower")
    write_base(dict(model_of(seed=1).llm.state_dict()), tmp_path)
    assert make(tmp_path) == 0
    assert HEAD not in all_weights(tmp_path / "delta")
    found = llava.load(tmp_path / "delta")
    assert torch.equal(found.llm.lm_head.weight, target.llm.get_input_embeddings().weight)


def test_another_base_of_the_same_shapes_is_refused(base_state: Any, target: Any, tmp_path: Path, capsys: Any):
    write_base(base_state, tmp_path)
    write_target(target, tmp_path)
    make(tmp_path)
    other = {**base_state, "model.norm.weight": base_state["model.norm.weight"] + 1}
    save_state(other, tmp_path / "base")
    assert apply(tmp_path) == 1
    assert "is not the base of" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"is not the base of .*delta.*made against 'base'"):
        llava.load(tmp_path / "delta")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.norm.weight"), r"the base .* lacks model.norm.weight, which .*model.safetensors holds"),
        (lambda s: s.update({EMBEDDINGS: s[EMBEDDINGS][:, :16]}), r"embed_tokens.weight has shape \[60, 32\]"),
        (lambda s: s.update({"model.norm.weight": torch.ones(7)}), r"model.norm.weight has shape \[32\].*\[7\]"),
        (lambda s: s.update({"model.layers.2.mlp.up_proj.weight": torch.ones(1)}), r"lacks model.layers.2.mlp.up_proj"),
    ],
)
def test_a_base_of_other_weights_is_named(base_state: Any, target: Any, tmp_path: Path, change: Any, message: str):
    state = dict(base_state)
    change(state)
    write_base(state, tmp_path)
    write_target(target, tmp_path)
    with pytest.raises(ValueError, match=message + r"(?s:.*)give the base that it was trained on"):
        make_delta.make_delta(tmp_path / "base", tmp_path / "target", tmp_path / "delta")


def test_what_cannot_be_a_delta_says_so(base_state: Any, target: Any, tmp_path: Path, capsys: Any):
    write_base(base_state, tmp_path)
    write_target(target, tmp_path)
    assert make(tmp_path) == 0
    assert make(tmp_path) == 1
    assert "delta holds weights already" in capsys.readouterr().err
    with pytest.raises(ValueError, match="is a delta itself, expected a whole model"):
        make_delta.make_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "more")
    target.save_pretrained(tmp_path / "three")
    with pytest.raises(ValueError, match=r"three holds no weights of a model .*give the part: .*three/llm"):
        make_delta.make_delta(tmp_path / "base", tmp_path / "three", tmp_path / "more")
    assert apply(tmp_path, "--max-shard-size", "large") == 1
    assert "max_shard_size is 'large', expected" in capsys.readouterr().err
    edit_json(tmp_path / "delta" / "config.json", **{MARK: "vicuna"})
    with pytest.raises(ValueError, match=rf"config.json: {MARK} is 'vicuna', expected base, fingerprint and types"):
        llava.load(tmp_path / "delta")


def test_the_delta_of_a_language_model_names_the_command(base_state: Any, tmp_path: Path, capsys: Any):
    write_base(base_state, tmp_path)
    save_state({name: value + 1 for name, value in base_state.items()}, tmp_path / "target")
    (tmp_path / "target" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    make(tmp_path)
    with pytest.raises(ValueError, match=r"delta of a language model without vision.*llava.model.apply_delta"):
        llava.load(tmp_path / "delta")
    assert apply(tmp_path) == 0
    assert torch.equal(all_weights(tmp_path / "again")[HEAD], base_state[HEAD] + 1)
