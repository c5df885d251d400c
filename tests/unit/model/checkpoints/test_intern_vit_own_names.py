"""InternViT under the names of its own code, wherever a tower is read; features against the published formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import llava
from llava.cli.inspect import main as inspect
from llava.model.builder import build_model
from llava.model.checkpoints import ReadOptions
from llava.model.checkpoints.stored import folder_headers, open_tensors, rows_of
from llava.model.configuration_llava import LlavaConfig
from llava.model.multimodal_encoder.builder import build_vision_tower, read_vision_tower
from tests.numerics.models import tiny_config, worst
from tests.unit.model.checkpoints.folders import (
    edit_json,
    logits_of,
    model_of,
    same_weights,
    save_state,
    write_original,
)

WIDTH, HEADS, INSIDE, LAYERS, SIDE, PATCH = 24, 2, 48, 3, 32, 8
SHARED = {
    "model_type": "intern_vit_6b", "architectures": ["InternVisionModel"], "hidden_size": WIDTH, "image_size": SIDE,
    "intermediate_size": INSIDE, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "patch_size": PATCH,
    "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "attention_dropout": 0.0, "dropout": 0.0,
    "initializer_range": 1e-10, "use_flash_attn": True, "torch_dtype": "float32",
    "auto_map": {"AutoModel": "modeling_intern_vit.InternVisionModel"},
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    # the first 6B models do not say which norm they have
    "6B": {"qkv_bias": False, "qk_normalization": True, "initializer_factor": 0.1, "drop_path_rate": 0.0},
    "300M": {
        "norm_type": "layer_norm",
        "qkv_bias": True,
        "qk_normalization": False,
        "initializer_factor": 1.0,
        "drop_path_rate": 0.1,
    },
}
TOLERANCE = 1e-5


def own_state(variant: str) -> dict[str, Tensor]:
    """Random weights under the published names."""
    says = VARIANTS[variant]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (1, 1, WIDTH),
        "embeddings.position_embedding": (1, 1 + (SIDE // PATCH) ** 2, WIDTH),
        "embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        "embeddings.patch_embedding.bias": (WIDTH,),
    }
    norms = ("weight", "bias") if "norm_type" in says else ("weight",)
    for layer in (f"encoder.layers.{number}" for number in range(LAYERS)):
        shapes |= {f"{layer}.{norm}.{kind}": (WIDTH,) for norm in ("norm1", "norm2") for kind in norms}
        shapes |= {f"{layer}.ls1": (WIDTH,), f"{layer}.ls2": (WIDTH,), f"{layer}.attn.qkv.weight": (3 * WIDTH, WIDTH)}
        shapes |= {f"{layer}.attn.qkv.bias": (3 * WIDTH,)} if says["qkv_bias"] else {}
        shapes |= {f"{layer}.attn.{n}_norm.weight": (WIDTH,) for n in "qk" if says["qk_normalization"]}
        shapes |= {f"{layer}.attn.proj.weight": (WIDTH, WIDTH), f"{layer}.attn.proj.bias": (WIDTH,)}
        shapes |= {f"{layer}.mlp.fc1.weight": (INSIDE, WIDTH), f"{layer}.mlp.fc1.bias": (INSIDE,)}
        shapes |= {f"{layer}.mlp.fc2.weight": (WIDTH, INSIDE), f"{layer}.mlp.fc2.bias": (WIDTH,)}
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    """RMSNorm where a norm has no bias, else LayerNorm."""
    if f"{name}.bias" in w:
        x = x - x.mean(dim=-1, keepdim=True)
    x = x / (x.pow(2).mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    return x * w[f"{name}.weight"] + w.get(f"{name}.bias", torch.zeros(()))


def layer_by_formula(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """w: one layer's weights."""
    table = F.linear(norm(x, w, "norm1"), w["attn.qkv.weight"], w.get("attn.qkv.bias"))
    q, k, v = table.reshape(*x.shape[:2], 3, WIDTH).unbind(2)
    if "attn.q_norm.weight" in w:
        q, k = norm(q, w, "attn.q_norm"), norm(k, w, "attn.k_norm")
    mixed = []
    for part in torch.arange(WIDTH).chunk(HEADS):
        scores = torch.einsum("nid,njd->nij", q[..., part], k[..., part]) / (WIDTH / HEADS) ** 0.5
        mixed.append(scores.softmax(dim=-1) @ v[..., part])
    x = x + w["ls1"] * F.linear(torch.cat(mixed, dim=-1), w["attn.proj.weight"], w["attn.proj.bias"])
    inside = F.gelu(F.linear(norm(x, w, "norm2"), w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
    return x + w["ls2"] * F.linear(inside, w["mlp.fc2.weight"], w["mlp.fc2.bias"])


def features_by_formula(state: dict[str, Tensor], pixels: Tensor, layers: int = LAYERS) -> Tensor:
    """Patch features behind so many layers: nothing stands behind the last one."""
    maps = F.conv2d(
        pixels, state["embeddings.patch_embedding.weight"], state["embeddings.patch_embedding.bias"], stride=PATCH
    )
    first = state["embeddings.class_embedding"].expand(len(pixels), -1, -1)
    x = torch.cat([first, maps.flatten(2).transpose(1, 2)], dim=1) + state["embeddings.position_embedding"]
    for number in range(layers):
        root = f"encoder.layers.{number}."
        x = layer_by_formula(x, {n.removeprefix(root): v for n, v in state.items() if n.startswith(root)})
    return x[:, 1:]


def floats() -> Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def features(tower: Any) -> Tensor:
    with torch.no_grad():
        return tower(floats())


def write_tower(
    folder: Path, variant: str = "6B", kind: str = "safetensors", prefix: str = "", **state: Any
) -> dict[str, Tensor]:
    """A published folder; an entry of `state` replaces that weight, None takes it out. Answers what is complete."""
    whole = own_state(variant)
    stored = {prefix + name: value for name, value in {**whole, **state}.items() if value is not None}
    save_state(stored, folder, kind)
    (folder / "config.json").write_text(json.dumps({**SHARED, **VARIANTS[variant]}))
    return whole


# ---- features ----


@pytest.mark.parametrize("kind", ["safetensors", "bin", "safetensors shards", "bin shards"])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_features_are_those_of_the_published_formula(tmp_path: Path, variant: str, kind: str):
    state = write_tower(tmp_path, variant, kind)
    for layer, count in ((None, LAYERS), (-1, LAYERS), (-2, LAYERS - 1)):
        tower = read_vision_tower(tmp_path, LlavaConfig(mm_vision_select_layer=layer), ReadOptions())
        expected = features_by_formula(state, floats(), count)
        assert expected.abs().max() > 0.5
        assert worst(features(tower), expected) <= TOLERANCE * expected.abs().max().item()


@pytest.mark.parametrize("prefix", ["vision_tower.", "vision_model.", "model.vision_tower.vision_tower."])
def test_a_tower_that_is_stored_under_its_names_inside_of_a_model(tmp_path: Path, prefix: str):
    state = write_tower(tmp_path, prefix=prefix)
    tower = read_vision_tower(tmp_path, LlavaConfig(), ReadOptions())
    assert worst(features(tower), features_by_formula(state, floats())) <= TOLERANCE * 10


def test_settings_are_those_of_transformers(tmp_path: Path):
    write_tower(tmp_path, "6B")
    large: Any = read_vision_tower(tmp_path, LlavaConfig(), ReadOptions()).config
    assert (large.norm_type, large.use_qk_norm, large.attention_bias) == ("rms_norm", True, False)
    small: Any = build_vision_tower({**SHARED, **VARIANTS["300M"]}, LlavaConfig()).config
    assert (small.norm_type, small.use_qk_norm, small.attention_bias) == ("layer_norm", False, True)
    assert (small.model_type, small.use_mean_pooling, small.layer_scale_init_value) == ("internvl_vision", True, 1.0)


def test_weights_come_in_the_type_that_is_asked_for(tmp_path: Path):
    write_tower(tmp_path)
    assert read_vision_tower(tmp_path, LlavaConfig(), ReadOptions()).dtype == torch.float32
    assert read_vision_tower(tmp_path, LlavaConfig(), ReadOptions(dtype=torch.bfloat16)).dtype == torch.bfloat16


# ---- wherever a tower is read ----


def saved_again(model: Any, folder: Path) -> None:
    """Saved in transformers' layout, and the same to the bit when it is read."""
    model.save_pretrained(folder)
    assert json.loads((folder / "vision_tower" / "config.json").read_text())["model_type"] == "internvl_vision"
    names = load_file(folder / "vision_tower" / "model.safetensors")
    assert any(name.endswith("attention.q_proj.weight") for name in names)
    again = llava.load(folder)
    assert same_weights(again, model)
    assert torch.equal(features(again.vision_tower), features(model.vision_tower))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_a_new_model_of_training_starts_from_it(tmp_path: Path, variant: str, kind: str):
    state = write_tower(tmp_path / "tower", variant, kind)
    model = build_model({**tiny_config(), "vision_tower_cfg": str(tmp_path / "tower")}).eval()
    expected = features_by_formula(state, floats())
    assert worst(features(model.vision_tower), expected) <= TOLERANCE * expected.abs().max().item()
    saved_again(model, tmp_path / "saved")


def test_the_tower_of_a_checkpoint_of_three_folders(tmp_path: Path, capsys: Any):
    folder = tmp_path / "three"
    model_of(tower="internvl_vision", mm_projector_cfg="mlp_downsample").save_pretrained(folder)
    (folder / "vision_tower" / "model.safetensors").unlink()
    state = write_tower(folder / "vision_tower", kind="safetensors shards")
    # all that VILA-1.5-40b says there
    own = {"image_processor_type": "InternVisionPreprocessor"}
    (folder / "vision_tower" / "preprocessor_config.json").write_text(json.dumps(own))
    edit_json(folder / "config.json", mm_vision_select_layer=-2)
    assert inspect([str(folder)]) == 0
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("vision_tower"))
    numbers = sum(value.numel() for value in state.values())
    assert row[1:4] == ["internvl", str(len(state)), f"{numbers:,}"]
    model = llava.load(folder)
    assert model.image_processor is None
    assert model.visual_spec.image_mean == pytest.approx((0.485, 0.456, 0.406))
    expected = features_by_formula(state, floats(), LAYERS - 1)
    assert worst(features(model.vision_tower), expected) <= TOLERANCE * expected.abs().max().item()
    saved_again(model, tmp_path / "saved")


def intern_model() -> Any:
    return model_of(tower="internvl_vision", mm_vision_select_layer=-2)


def test_the_tower_that_an_original_checkpoint_only_names(tmp_path: Path):
    folder = write_original(intern_model(), tmp_path, tower=False)
    state = write_tower(tmp_path / "other", "300M")
    model = llava.load(folder, vision_tower=str(tmp_path / "other"))
    expected = features_by_formula(state, floats(), LAYERS - 1)
    assert worst(features(model.vision_tower), expected) <= TOLERANCE * expected.abs().max().item()
    assert inspect([str(folder), "--vision-tower", str(tmp_path / "other")]) == 0


def original_with_own_names(root: Path, **state: Any) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint that holds its tower under the own names; the tower's folder gives no more than settings."""
    folder = write_original(intern_model(), root, tower=False)
    held = load_file(folder / "model.safetensors")
    (root / "tower" / "config.json").write_text(json.dumps({**SHARED, **VARIANTS["6B"]}))
    whole = own_state("6B")
    inside = {name: value for name, value in {**whole, **state}.items() if value is not None}
    save_state(held | {f"model.vision_tower.vision_tower.{name}": value for name, value in inside.items()}, folder)
    return folder, whole


def test_the_tower_inside_of_an_original_checkpoint(tmp_path: Path):
    folder, state = original_with_own_names(tmp_path)
    assert inspect([str(folder)]) == 0
    model = llava.load(folder)
    expected = features_by_formula(state, floats(), LAYERS - 1)
    assert worst(features(model.vision_tower), expected) <= TOLERANCE * expected.abs().max().item()
    saved_again(model, tmp_path / "saved")
    assert logits_of(model).isfinite().all()


def test_a_layer_that_is_never_run_need_not_be_there(tmp_path: Path, capsys: Any):
    last = {name: None for name in own_state("6B") if name.startswith(f"encoder.layers.{LAYERS - 1}.")}
    folder, state = original_with_own_names(tmp_path, **last)
    assert inspect([str(folder)]) == 0
    assert "behind the selected layer of the tower, never run" in " ".join(capsys.readouterr().out.split())
    expected = features_by_formula(state, floats(), LAYERS - 1)
    assert worst(features(llava.load(folder).vision_tower), expected) <= TOLERANCE * expected.abs().max().item()


# ---- what does not fit ----

QKV = "encoder.layers.1.attn.qkv.weight"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({QKV: None}, rf"lacks weights: vision_tower.{QKV} \[72, 24\]"),
        ({QKV: torch.zeros(60, 24)}, rf"model.safetensors: {QKV} has shape \[60, 24\], expected \[72, 24\]"),
        ({"encoder.layers.1.ls3": torch.zeros(24)}, r"unknown weights in .*model.safetensors: encoder.layers.1.ls3"),
        ({"encoder.layers.0.norm1.bias": torch.zeros(24)}, r"unknown weights in .*: encoder.layers.0.norm1.bias"),
        ({"vision_tower.encoder.layers.0.ls1": torch.zeros(24)}, r"\(the same weight as encoder.layers.0.ls1 in"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, capsys: Any, state: dict[str, Any], message: str):
    write_tower(tmp_path, **state)
    with pytest.raises(ValueError, match=rf"(?=.*{tmp_path}).*{message}.*vila-inspect {tmp_path}"):
        read_vision_tower(tmp_path, LlavaConfig(), ReadOptions())
    assert inspect([str(tmp_path)]) == 1
    assert "layout     vision tower alone" in capsys.readouterr().out


def test_weights_that_do_not_fit_are_named_inside_of_a_checkpoint(tmp_path: Path):
    folder, _ = original_with_own_names(tmp_path, **{QKV: None})
    with pytest.raises(ValueError, match=rf"{folder} lacks weights: vision_tower.{QKV} \[72, 24\]"):
        llava.load(folder)
    assert inspect([str(folder)]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_type": "batch_norm"}, r"config.json: norm_type is 'batch_norm', expected 'rms_norm' or 'layer_norm'"),
        ({"layer_norm_eps": 1e-5}, r"config.json: layer_norm_eps is 1e-05 with qk_normalization, expected 1e-06"),
        ({"hidden_size": 48}, r"has shape \[.*expected \["),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, Any], message: str):
    write_tower(tmp_path)
    edit_json(tmp_path / "config.json", **change)
    with pytest.raises(ValueError, match=rf"{tmp_path}.*{message}"):
        read_vision_tower(tmp_path, LlavaConfig(), ReadOptions())


# ---- rows of stored tensors ----


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_rows_of_a_stored_tensor(tmp_path: Path, kind: str):
    save_state({"a": torch.arange(12.0).reshape(6, 2)}, tmp_path, kind)
    rows = rows_of(folder_headers(tmp_path)["a"], 2, 4)
    assert (rows.shape, rows.num_bytes) == ((2, 2), 16)
    assert open_tensors({"b": rows})["b"][...].tolist() == [[4, 5], [6, 7]]
