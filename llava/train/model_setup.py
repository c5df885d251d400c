"""Tokenizer and model of a run: from a checkpoint, from a plain language model, or from nothing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from llava.conversation import TEMPLATES
from llava.model.builder import build_model, load_pretrained_model
from llava.model.checkpoints.adapter import AdapterOnBase
from llava.train.args import EMBEDDED, ModelArguments
from llava.train.corpus import fixed_phrases
from llava.train.parse import RunArguments
from llava.utils.distributed import barrier
from llava.utils.registry import Registry
from llava.utils.tokenizer import ensure_special_tokens, train_tokenizer

logger = logging.getLogger(__name__)

EMBEDDED_TEMPLATE = "llama_3"
TOKENIZER_FOLDER = "tokenizer"

STORED_SETTINGS = (
    "image_aspect_ratio", "min_tiles", "max_tiles", "num_video_frames", "fps",
    "mm_vision_select_layer", "mm_vision_select_feature", "mm_use_im_start_end", "interpolate_mode",
    "soft_ce_std", "mm_projector_lr", "vision_tower_lr",
)  # fmt: skip
"""Arguments that live in the checkpoint's config; of an existing checkpoint only the given ones are changed."""


NEW_MODEL_ONLY = (
    "s2", "dynamic_s2", "s2_scales", "s2_max_split_size", "s2_resize_output_to_scale_idx", "vision_resolution",
)  # fmt: skip
"""Arguments that shape the tower; a checkpoint brings its own."""

TOWER_READING = ("mm_vision_select_layer", "mm_vision_select_feature", "interpolate_mode", *NEW_MODEL_ONLY)


@dataclass(frozen=True, kw_only=True)
class EmbeddedModel:
    """Sizes of a model that is built from nothing. One picture takes (image / patch / 2)^2 tokens."""

    image_size: int
    patch_size: int
    stem_strides: tuple[int, ...]
    tower: Mapping[str, int | str]
    language_model: Mapping[str, int]

    def config_parts(self, *, vocab_size: int, context: int, ids: Mapping[str, int | None]) -> dict[str, Any]:
        """The three parts as `LlavaConfig` takes them."""
        tower = {
            "model_type": "siglip_stem", "image_size": self.image_size, "patch_size": self.patch_size,
            "stem_strides": list(self.stem_strides), **self.tower,
        }  # fmt: skip
        language_model = {
            "model_type": "llama", "vocab_size": vocab_size, "max_position_embeddings": context,
            "tie_word_embeddings": False, **self.language_model, **ids,
        }  # fmt: skip
        return {"llm_cfg": language_model, "vision_tower_cfg": tower, "mm_projector_cfg": "mlp_downsample"}


EMBEDDED_MODELS = Registry[EmbeddedModel]("embedded model")
EMBEDDED_MODELS.register("tiny")(
    EmbeddedModel(
        image_size=64,
        patch_size=16,
        stem_strides=(4, 4),
        tower={
            "stem_width": 32, "hidden_act": "relu",
            "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4,
        },
        language_model={
            "hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 3,
            "num_attention_heads": 6, "num_key_value_heads": 6,
        },
    )
)  # fmt: skip
EMBEDDED_MODELS.register("gpu")(
    EmbeddedModel(
        image_size=128,
        patch_size=16,
        stem_strides=(4, 4),
        tower={"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6},
        language_model={
            "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
            "num_attention_heads": 8, "num_key_value_heads": 8,
        },
    )
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """A model ready for training, its tokenizer and the conversation template of the data.

    `adapter` is set where an adapter is trained: then the parts are frozen and freed already.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: str
    adapter: AdapterOnBase | None = None


def prepare_model(args: RunArguments, *, checkpoint: Path | None, corpus: Callable[[], Iterable[str]]) -> PreparedModel:
    """Read or build the model that the arguments name, or the checkpoint when a run is resumed.

    Args:
        corpus: the data's text, asked for only where a tokenizer must be trained.
    """
    dtype = weights_dtype(args)
    source = args.model.model_name_or_path if checkpoint is None else str(checkpoint)
    if source == EMBEDDED:
        prepared = _embedded(args, dtype, corpus)
    elif checkpoint is not None or is_vlm(source, args.training.cache_dir):
        if checkpoint is None:
            require_no_new_tower(args)
        prepared = read_model(source, args, dtype)
    else:
        prepared = _from_language_model(args, dtype)
    return prepared


def weights_dtype(args: RunArguments) -> torch.dtype:
    """What was given; bfloat16 under DeepSpeed with --bf16 (its optimizer keeps a float32 copy); else float32."""
    if "model_dtype" in args.given:
        name = args.training.model_dtype.removeprefix("torch.")
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"model_dtype is '{args.training.model_dtype}', expected float32, bfloat16 or float16")
        return dtype
    if args.training.deepspeed and args.training.bf16:
        return torch.bfloat16
    if args.training.deepspeed and args.training.fp16:
        return torch.float16
    return torch.float32


def is_vlm(path: str, cache_dir: str | None) -> bool:
    """True for a checkpoint with vision parts, False for a plain language model."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(path, cache_dir=cache_dir)
    except OSError as error:
        raise ValueError(
            f"model_name_or_path is '{path}', where no config.json was found; expected a model folder, a model id "
            f"that can be downloaded, or '{EMBEDDED}'"
        ) from error
    return "llm_cfg" in config or "vision_config" in config or "mm_vision_tower" in config


def require_no_new_tower(args: RunArguments) -> None:
    stored, _ = PreTrainedConfig.get_config_dict(args.model.model_name_or_path, cache_dir=args.training.cache_dir)
    # published scripts repeat what the checkpoint was built with, which changes nothing
    given = {name: getattr(args.model, name) for name in NEW_MODEL_ONLY if name in args.given}
    fixed = [name for name, value in given.items() if (value or None) != (stored.get(name) or None)]
    if fixed:
        raise ValueError(
            f"--{fixed[0]} shapes the tower of a new model, but {args.model.model_name_or_path} is a checkpoint with "
            "one of its own; leave it out, or start from a language model with --vision_tower"
        )


def read_model(
    path: str, args: RunArguments, dtype: torch.dtype, quantization_config: Any = None, device: str = "cpu"
) -> PreparedModel:
    """The model of a checkpoint; only flags that were given change its settings."""
    with zero_init_off(args):
        tokenizer, model, *_ = load_pretrained_model(
            path,
            device=device,
            dtype=dtype,
            quantization_config=quantization_config,
            attn_implementation=args.model.attn_implementation,
            cache_dir=args.training.cache_dir,
        )
    if args.model.mlp_path:
        load_projector(model.mm_projector, Path(args.model.mlp_path))
    return with_given_settings(model, tokenizer, args)


def with_given_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: RunArguments
) -> PreparedModel:
    """A model that was read, with the settings that the command line changes."""
    store_settings(model.config, args, only_given=True)
    return PreparedModel(model=model, tokenizer=tokenizer, template=_template(args, model.config, tokenizer))


def _from_language_model(args: RunArguments, dtype: torch.dtype) -> PreparedModel:
    wanted = args.model
    parts = {
        "llm_cfg": wanted.model_name_or_path,
        "vision_tower_cfg": wanted.vision_tower,
        "mm_projector_cfg": wanted.mm_projector,
        **_tower_reading(args),
    }
    tokenizer = AutoTokenizer.from_pretrained(wanted.model_name_or_path, cache_dir=args.training.cache_dir)
    return _built(parts, tokenizer, args, dtype)


def _tower_reading(args: RunArguments) -> dict[str, Any]:
    """How the tower is read, where the command line says so; else the tower's own habit."""
    return {name: getattr(args.model, name) for name in TOWER_READING if name in args.given}


def _embedded(args: RunArguments, dtype: torch.dtype, corpus: Callable[[], Iterable[str]]) -> PreparedModel:
    folder = Path(args.training.output_dir or ".") / TOKENIZER_FOLDER
    if args.training.process_index == 0:
        template = args.model.version if args.model.version != "auto" else EMBEDDED_TEMPLATE
        train_tokenizer(corpus(), args.model.vocab_size, folder, fixed_phrases(template))
    barrier()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    size = EMBEDDED_MODELS[args.model.embedded_size]
    parts = size.config_parts(vocab_size=len(tokenizer), context=args.training.model_max_length, ids=ids)
    parts |= {
        f"{name}_cfg": getattr(args.model, name) for name in ("vision_tower", "mm_projector") if name in args.given
    }
    parts |= _tower_reading(args)
    prepared = _built(parts, tokenizer, args, dtype)
    # as nn.Linear starts by itself: the language model's own 0.02 makes a young head slow to learn
    prepared.model.get_output_embeddings().reset_parameters()  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    return prepared


def _built(
    parts: dict[str, Any], tokenizer: PreTrainedTokenizerBase, args: RunArguments, dtype: torch.dtype
) -> PreparedModel:
    image_token_id = ensure_special_tokens(tokenizer)
    with zero_init_off(args):
        settings = {**parts, "image_token_id": image_token_id}
        model = build_model(
            settings, tokenizer=tokenizer, attn_implementation=args.model.attn_implementation, dtype=dtype
        )
    if args.model.mlp_path:
        load_projector(model.mm_projector, Path(args.model.mlp_path))
    store_settings(model.config, args, only_given=False)
    return PreparedModel(model=model, tokenizer=tokenizer, template=_template(args, model.config, tokenizer))


def load_projector(projector: torch.nn.Module, path: Path) -> None:
    """Read projector weights: a `mm_projector` folder, a .safetensors or a .bin file; prefixes of names are cut."""
    if path.is_dir():
        path = next((f for f in sorted(path.iterdir()) if f.suffix in (".safetensors", ".bin")), path)
    if not path.is_file():
        raise FileNotFoundError(f"mlp_path is {path}, where no .safetensors or .bin file is; give projector weights")
    read = load_file if path.suffix == ".safetensors" else partial(torch.load, weights_only=True, map_location="cpu")
    weights = {name.rpartition("mm_projector.")[2]: tensor for name, tensor in read(path).items()}
    try:
        projector.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"weights of {path} do not fit --mm_projector: {error}") from error


def _template(args: RunArguments, config: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    """The conversation template: what was given, else the checkpoint's, else by the tokenizer; stored in the config."""
    if args.model.chat_template:
        tokenizer.chat_template = Path(args.model.chat_template).read_text(encoding="utf-8")
    name = args.model.version
    if name == "auto":
        name = getattr(config, "version", None) or _template_of(tokenizer)
    config.version = TEMPLATES[name] and name
    return name


def _template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.chat_template:
        return "auto"
    known = {"<|eot_id|>": "llama_3", "<|im_end|>": "hermes-2"}
    vocabulary = tokenizer.get_vocab()
    return next((name for token, name in known.items() if token in vocabulary), "vicuna_v1")


def store_settings(config: Any, args: RunArguments, *, only_given: bool) -> None:
    """Put arguments that belong to the model into its config; with `only_given`, defaults change nothing."""
    values = {**vars(args.model), **vars(args.data), **vars(args.training)}
    reads_tower = {"mm_vision_select_layer", "mm_vision_select_feature"}
    for name in STORED_SETTINGS:
        if name in args.given or not (only_given or name in reads_tower):
            setattr(config, name, values[name])
    if "model_max_length" in args.given or not only_given:
        config.tokenizer_model_max_length = args.training.model_max_length


@contextlib.contextmanager
def zero_init_off(args: RunArguments) -> Iterator[None]:
    """Make or read whole weights although ZeRO-3 is asked for; the engine splits them afterwards.

    Fresh weights cannot be initialised while they are split, and parts of a checkpoint are read with a device map,
    which splitting excludes. The price is one copy of the weights per rank in host memory until the engine starts.
    """
    config = getattr(args.training, "hf_deepspeed_config", None)
    if config is None:
        yield
        return
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(config)


def is_embedded(args: ModelArguments) -> bool:
    return args.model_name_or_path == EMBEDDED
