"""Small checkpoint folders of every layout, written from one tiny random model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.numerics.models import VOCAB, pictures, tiny_model

IMAGE = VOCAB - 1
FAMILY = {"llama": "llava_llama", "qwen2": "llava_qwen", "mistral": "llava_mistral", "mixtral": "llava_mixtral"}


def model_of(llm: str = "llama", tower: str = "clip_vision_model", **kw: Any) -> Any:
    return tiny_model(llm, tower, **{"mm_projector_cfg": "mlp2x_gelu", "image_token_id": IMAGE, **kw})


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def save_state(state: dict[str, Tensor], folder: Path, kind: str = "safetensors") -> None:
    """kind: "safetensors", "bin", or either with " shards": two files and an index."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().clone().contiguous() for name, value in state.items()}
    suffix, stem = ("bin", "pytorch_model") if kind.startswith("bin") else ("safetensors", "model")
    names = [f"{stem}.{suffix}"]
    if kind.endswith("shards"):
        names = [f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    shares = [dict(list(state.items())[number :: len(names)]) for number in range(len(names))]
    for name, share in zip(names, shares, strict=True):
        if suffix == "bin":
            torch.save(share, folder / name)
        else:
            save_file(share, folder / name, metadata={"format": "pt"})
    if len(names) > 1:
        weight_map = {key: name for name, share in zip(names, shares, strict=True) for key in share}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def original_state(model: Any, *, tower: bool = True) -> dict[str, Tensor]:
    """The names of LLaVA's own code."""
    state = dict(model.llm.state_dict())
    layers = model.mm_projector.state_dict()
    state |= {f"model.mm_projector.{name.removeprefix('layers.')}": value for name, value in layers.items()}
    if tower:
        inside = model.vision_tower.vision_tower.state_dict()
        state |= {f"model.vision_tower.vision_tower.vision_model.{name}": value for name, value in inside.items()}
    return state


def original_config(model: Any, tower: str) -> dict[str, Any]:
    llm = {key: value for key, value in model.llm.config.to_dict().items() if key not in ("architectures", "dtype")}
    return {
        **llm,
        "model_type": FAMILY[model.llm.config.model_type],
        "_name_or_path": "/train/runs/base",
        "mm_vision_tower": tower,
        "mm_hidden_size": model.vision_tower.hidden_size,
        "mm_projector_type": model.mm_projector.config.mm_projector_type,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "pad",
    }


def write_original(model: Any, root: Path, *, tower: bool = True, kind: str = "safetensors") -> Path:
    """`root/llava`, with the tower beside it in `root/tower`."""
    folder = root / "llava"
    save_state(original_state(model, tower=tower), folder, kind)
    (folder / "config.json").write_text(json.dumps(original_config(model, "./tower")))
    model.vision_tower.vision_tower.save_pretrained(root / "tower")
    return folder


def rewrite(folder: Path, change: Any, file: str = "model.safetensors") -> None:
    state = load_file(folder / file)
    change(state)
    save_file(state, folder / file, metadata={"format": "pt"})


def same_weights(found: Any, expected: Any) -> bool:
    first, second = found.state_dict(), expected.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in second)


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([[1, -200, 5, 9, 3]]), pictures(1)).logits
