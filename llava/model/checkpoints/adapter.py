"""A low-rank adapter beside the weights of a model: attached, filled, and written as a folder of its own.

The base is not written: the folder names it, and holds a small sample of its weights to know it again.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from llava.model.checkpoints import autoregressive, scene_split
from llava.model.checkpoints.base_and_change import find_weight, weights_of, write_over
from llava.model.checkpoints.stored import StoredTensor, open_tensors, read_headers, read_json
from llava.model.checkpoints.three_folder import make_generation_config_valid

if TYPE_CHECKING:
    from llava.model.language_model.base import LlavaCausalLM

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_CONFIG = "adapter_config.json"
OTHERS = "non_lora_trainables.bin"
SAMPLE = "base_sample.json"
NAME = "default"
ROOT = "base_model.model."
"""What peft puts before every name of a model that carries an adapter."""

SAMPLED_WEIGHTS, SAMPLED_VALUES = 16, 4
SAME = 2e-2
"""Relative difference up to which a sampled value counts as the same: bfloat16 rounds by 4e-3."""

_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?")
_WHOLE = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)(?=\.)")


@dataclass(frozen=True, kw_only=True)
class AdapterOnBase:
    """What the weights of an adapted model are a change to.

    Attributes:
        base: folder or hub id of the model without the adapter.
        changed: weights outside the adapter that differ from the base although they are frozen now.
    """

    base: str
    changed: frozenset[str] = frozenset()


def require_peft(why: str) -> None:
    if find_spec("peft") is None:
        raise ImportError(f'{why} needs peft, which is not installed: pip install "llava[train]"')


def adapter_file(folder: Path) -> Path:
    for name in ADAPTER_FILES:
        if (folder / name).is_file():
            return folder / name
    found = ", ".join(sorted(entry.name for entry in folder.iterdir()))
    raise FileNotFoundError(f"{folder} has no adapter weights: expected {' or '.join(ADAPTER_FILES)}, found {found}")


def read_settings(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a LoRA or DoRA.

    Raises:
        ValueError: another kind of adapter.
    """
    settings = read_json(folder / ADAPTER_CONFIG)
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{folder / ADAPTER_CONFIG}: peft_type is {settings.get('peft_type')!r}, expected 'LORA'")
    return settings


def is_adapter_weight(name: str) -> bool:
    return ".lora_" in name


def attach(model: LlavaCausalLM, config: Any) -> Any:
    """Puts an untrained adapter beside the modules that a peft config names, in place; answers peft's wrapper.

    Adapters of half-precision weights are float32, as an optimizer and a merge need them.
    """
    require_peft("an adapter")
    from peft import PeftModel

    return PeftModel(model, config, adapter_name=NAME)  # pyright: ignore[reportArgumentType]


def config_for(settings: Mapping[str, Any], modules: Iterable[str], **changes: Any) -> Any:
    """peft's config for the modules of a model; `settings` are those of an adapter_config.json."""
    from peft import LoraConfig

    known = set(LoraConfig.__dataclass_fields__)
    chosen = {key: value for key, value in settings.items() if key in known and value is not None}
    for key in ("layers_to_transform", "layers_pattern", "exclude_modules", "modules_to_save"):
        chosen.pop(key, None)  # the modules are listed one by one, and whole weights are written over the base's
    # biases are set and freed by us: peft would free those of every part
    chosen |= {"target_modules": sorted(modules), "task_type": None, "bias": "none", **changes}
    return LoraConfig(**chosen)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class StoredAdapter:
    """An adapter file in the names of our model: what lies beside which module, and weights that it holds whole."""

    tensors: Mapping[tuple[str, str], StoredTensor]
    whole: Mapping[str, StoredTensor]

    @property
    def modules(self) -> list[str]:
        return sorted({module for module, _ in self.tensors})


def open_adapter(model: LlavaCausalLM, folder: Path) -> StoredAdapter:
    """The adapter of a folder, each tensor checked against the shapes of a model (with an adapter or without).

    Raises:
        ValueError: a module that the model does not have, or of another shape.
    """
    weights = {name: tuple(value.shape) for name, value in weights_of(model).items()}
    tensors: dict[tuple[str, str], StoredTensor] = {}
    whole: dict[str, StoredTensor] = {}
    for name, tensor in read_headers([adapter_file(folder)]).items():
        match = _KEY.fullmatch(name)
        if match is None:
            whole[_WHOLE.sub("", name.removeprefix(ROOT))] = tensor
            continue
        weight = find_weight(f"{match[1]}.weight", weights)
        if weight is None:
            raise ValueError(
                f"{tensor.file}: the base has no module for {name}; the adapter belongs to another model: "
                "give the base that it was trained on as model_base"
            )
        _require_fit(tensor, match[2], weights[weight])
        tensors[weight.removesuffix(".weight"), match[2]] = tensor
    return StoredAdapter(tensors=tensors, whole=whole)


def _require_fit(tensor: StoredTensor, kind: str, weight: tuple[int, ...]) -> None:
    if len(weight) != 2 or weight[1] == 1:  # packed by quantisation: the module's own check has the last word
        return
    found, wanted = (tensor.shape[1], weight[1]) if kind == "lora_A" else (tensor.shape[0], weight[0])
    if found != wanted:
        raise ValueError(
            f"{tensor.file}: {tensor.name} has shape {list(tensor.shape)}, the base's weight {list(weight)} wants "
            f"{wanted} where it has {found}; the adapter belongs to another model: give the base that it was trained on"
        )


def other_trainables(folder: Path) -> dict[str, StoredTensor]:
    """Weights that were trained as a whole (the projector), by the names that they have without the adapter."""
    if not (folder / OTHERS).is_file():
        return {}
    stored = read_headers([folder / OTHERS])
    return {re.sub(r"^base_model\.(model\.(?=model\.|mm_projector|vision_tower|llm\.|lm_head))?", "", name): tensor
            for name, tensor in stored.items()}  # fmt: skip


@torch.no_grad()
def fill(model: LlavaCausalLM, folder: Path, stored: StoredAdapter) -> frozenset[str]:
    """Gives an attached adapter the stored values; answers the names of whole weights that the file holds.

    Raises:
        ValueError: a tensor for which there is no place of its shape, or a place that stays empty.
    """
    places = {name: value for name, value in model.state_dict().items() if is_adapter_weight(name)}
    targets: dict[str, StoredTensor] = {}
    for (module, kind), tensor in stored.tensors.items():
        name = f"{module}.{kind}.{NAME}.weight"
        if name not in places or tuple(places[name].shape) != tensor.shape:
            raise ValueError(f"{tensor.file}: {tensor.name} does not fit {ADAPTER_CONFIG}; copy both again")
        targets[name] = tensor
    empty = sorted(places.keys() - targets.keys())
    if empty:
        raise ValueError(f"{adapter_file(folder)} lacks {empty[0]}, which {ADAPTER_CONFIG} promises; copy both again")
    for name, value in open_tensors(targets).items():
        places[name].copy_(value[...])
    return write_over(model, stored.whole)


def read_over(model: LlavaCausalLM, folder: Path) -> frozenset[str]:
    """Gives a model with an adapter all values of a folder; answers the whole weights that differ from the base."""
    changed = fill(model, folder, open_adapter(model, folder))
    scene_split.read_into(model, folder)
    return changed | write_over(model, other_trainables(folder))


def write_adapter(
    model: LlavaCausalLM, folder: str | Path, adapter: AdapterOnBase, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Writes adapter, wholly trained weights, settings, tokenizer and a sample of the base.

    Args:
        state_dict: replaces the model's weights where they are split over ranks (ZeRO-3).
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    state = model.state_dict() if state_dict is None else state_dict
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    freed = {name for name in trained if not _has_own_folder(name)}
    lacking = sorted(freed - state.keys())
    if lacking:
        raise ValueError(
            f"the gathered weights lack {lacking[0]}; for ZeRO-3 its configuration needs "
            '"stage3_gather_16bit_weights_on_model_save": true'
        )
    autoregressive.write(model, root, state_dict)
    scene_split.write(model, root, state_dict)
    _write_weights(root, state, freed, adapter)
    _write_settings(root, model, adapter)
    _write_sample(root, state, model, trained | adapter.changed)


def _has_own_folder(name: str) -> bool:
    return autoregressive.is_of_predictor(name) or scene_split.is_of_split(name)


def _write_weights(root: Path, state: Mapping[str, Tensor], freed: set[str], adapter: AdapterOnBase) -> None:
    # cloned: a view of an engine's flat buffer would be pickled with all of the buffer
    values = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()
              if is_adapter_weight(name) or name in freed or plain_name(name) in adapter.changed}  # fmt: skip
    beside = {_name_in_file(name): value for name, value in values.items() if is_adapter_weight(name)}
    others = {f"{ROOT}{plain_name(name)}": value for name, value in values.items() if not is_adapter_weight(name)}
    save_file(beside, root / ADAPTER_FILES[0], metadata={"format": "pt"})
    torch.save(others, root / OTHERS)


def _name_in_file(name: str) -> str:
    """peft's spelling on disk: without the adapter's name, and a magnitude without its `.weight`."""
    stem = name.replace(f".{NAME}", "")
    return ROOT + (stem.removesuffix(".weight") if "lora_magnitude_vector" in stem else stem)


def plain_name(name: str) -> str:
    """The name that a weight has in a model without adapters."""
    return name.replace(".base_layer.", ".")


def _write_settings(root: Path, model: LlavaCausalLM, adapter: AdapterOnBase) -> None:
    config: Any = copy.copy(model.peft_config[NAME])  # pyright: ignore
    config.inference_mode, config.base_model_name_or_path = True, adapter.base
    # one by one: peft keeps endings such as "down_proj", which may name layers of other parts too
    config.target_modules = sorted({name.split(".lora_")[0] for name, _ in model.named_parameters()
                                    if is_adapter_weight(name)})  # fmt: skip
    config.save_pretrained(str(root))
    model.store_part_settings()
    for part in (model.config.llm_cfg, model.config.vision_tower_cfg):
        part.pop("quantization_config", None)  # how the base was read in training, not what it is
    model.config.save_pretrained(str(root))
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(str(root))
    if model.llm.generation_config is not None:
        make_generation_config_valid(model.llm.generation_config)
        model.llm.generation_config.save_pretrained(str(root))


def _write_sample(root: Path, state: Mapping[str, Tensor], model: LlavaCausalLM, changed: set[str]) -> None:
    """A few values of weights that are those of the base, spread over the model."""
    floats = (name for name, parameter in model.named_parameters() if parameter.is_floating_point())
    kept = [name for name in floats if name in state and not _has_own_folder(name)]
    frozen = [name for name in kept if not {name, plain_name(name)} & changed]
    chosen = frozen[:: max(len(frozen) // SAMPLED_WEIGHTS, 1)]
    sample = {plain_name(name): _spread(state[name]) for name in chosen}
    (root / SAMPLE).write_text(json.dumps(sample, indent=1) + "\n", encoding="utf-8")


def _spread(weight: Tensor) -> list[float]:
    flat = weight.detach().flatten()
    return flat[:: max(flat.numel() // SAMPLED_VALUES, 1)][:SAMPLED_VALUES].float().tolist()


def require_sampled_base(model: LlavaCausalLM, folder: Path) -> None:
    """Refuses a base of the right shape with other weights, as far as the folder holds a sample of its own.

    Raises:
        ValueError: names the weight that differs.
    """
    if not (folder / SAMPLE).is_file():
        return
    weights = weights_of(model)
    for name, expected in read_json(folder / SAMPLE).items():
        if name not in weights or not weights[name].is_floating_point():
            continue
        found = _spread(weights[name])
        if not torch.allclose(torch.tensor(found), torch.tensor(expected), rtol=SAME, atol=1e-5):
            raise ValueError(
                f"{folder}: the adapter was trained on another base: {name} begins with {found[0]:.4g}, "
                f"{expected[0]:.4g} was there; give the right one as model_base, or delete {SAMPLE} to read it anyway"
            )
