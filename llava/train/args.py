"""The arguments of a training run: names and defaults of the published programs, in three groups.

`TrainingArguments` extends the class of transformers, so every flag of the Hugging Face Trainer works too.
Parsing (old spellings, which flags were given, warnings about flags without effect) is in `parse.py`.
"""

import logging
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import transformers
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from llava.utils.registry import suggest

logger = logging.getLogger(__name__)

PACKAGED = ("tensorboard", "wandb", "trackio", "mlflow", "swanlab")
"""Places for `--report_to` that are installed under their own name."""

EMBEDDED = "embedded"
"""`--model_name_or_path embedded`: a small model built from nothing, its tokenizer trained on the data's own text."""


def option(default: Any, text: str) -> Any:
    """A dataclass field with the text that `--help` shows."""
    return field(default=default, metadata={"help": text})


@dataclass
class ModelArguments:
    """Which model is trained. On a checkpoint only the flags that were given change its stored settings."""

    model_name_or_path: str = option(
        "facebook/opt-125m",
        f"VLM folder, plain language model (then a tower and a projector are added), or '{EMBEDDED}'",
    )
    version: str = option("auto", "conversation template; 'auto' keeps the checkpoint's or follows the tokenizer")
    chat_template: str | None = option(None, "file with a chat template for the tokenizer")
    vision_tower: str = option("google/siglip-so400m-patch14-384", "vision encoder of a new VLM")
    mm_projector: str = option("mlp2x_gelu", "projector type of a new VLM, or a folder with projector weights")
    mm_use_im_start_end: bool = option(False, "wrap pictures in <im_start> <im_end>")
    mm_use_im_patch_token: bool = option(True, "kept for old scripts; only False has a meaning")
    mm_vision_select_layer: int = option(-1, "hidden layer of the tower that is read (-2 = last but one)")
    mm_vision_select_feature: str = option("patch", "'patch', 'cls_patch', or what the tower prefers when not given")
    vision_resolution: int = option(-1, "new input size of the tower; -1 keeps it")
    interpolate_mode: str | None = option(None, "how position embeddings are resized: bicubic (default) or bilinear")
    drop_path_rate: float = option(0.0, "stochastic depth of the tower")
    mlp_path: str | None = option(None, "projector weights to start from")
    s2: bool = option(False, "multi-scale tower")
    s2_scales: str = option("336,672,1008", "scales of the multi-scale tower")
    s2_max_split_size: int = option(336, "largest tile of the multi-scale tower")
    dynamic_s2: bool = option(False, "multi-scale tower on dynamic tiles")
    s2_resize_output_to_scale_idx: int = option(0, "scale to which features are resized (dynamic_s2), -1 = largest")
    num_time_tokens: int = option(0, "number of time tokens")
    time_token_format: str = option("<t{t}>", "spelling of a time token")
    soft_ce_std: float = option(1.0, "width of the soft target of a time token")
    attn_implementation: str | None = option(None, "sdpa, flash_attention_2, ...; the model's default when not given")
    scene_split: bool = option(False, "encode background and objects of a picture apart, to keep the background")
    scene_split_config: str | None = option(
        None, """keys of the split: '{"shared_projectors": false, "dilation": 1}', or a YAML or JSON file"""
    )
    image_cache: bool = option(False, "older name of scene_split")
    scene_split_groups: str = option("both", "what a stage shows of a split picture: both, background or objects")
    embedded_size: str = option("tiny", "row of the table of embedded models: tiny (CPU) or gpu")
    vocab_size: int = option(1024, "vocabulary of the tokenizer trained for an embedded model")


@dataclass
class DataArguments:
    """Which records are read and how they become sequences."""

    data_mixture: str = option("llava_1_5_mm_align", "data sets joined by +, repeated by *n: 'r2r+rxr*2'")
    tokenizer_mixture: str | None = option(
        None, "text that trains an embedded model's tokenizer (default: data_mixture)"
    )
    eval_data_mixture: str | None = option(None, "mixture for the evaluation loss")
    data_registry: str | None = option(None, "registry files or names, comma separated (default: VILA_DATASETS)")
    data_root: str | None = option(None, "folder that relative paths of the registry start from")
    data_path: str | None = option(None, "one LLaVA-style JSON file, used in place of a mixture")
    image_folder: str | None = option(None, "folder of the pictures named in data_path")
    mixture_weights: str | None = option(None, "share of every part drawn per epoch, 'name=0.5,other=2'")
    max_samples: int = option(-1, "use only so many samples of the mixture (a quick check); -1 = all")
    lazy_preprocess: bool = option(False, "kept for old scripts; samples are always built when they are read")
    is_multimodal: bool = option(False, "kept for old scripts; follows from the records")
    vflan_no_system_prompt: bool = option(False, "empty system prompt for vflan records")
    downsample_video: bool = option(False, "kept for old scripts")
    image_aspect_ratio: str = option("resize", "resize, pad, crop; dynamic, dynamic_s2: tiles of a picture alone")
    num_video_frames: int = option(8, "frames read of a video")
    fps: float = option(0.0, "frames per second read of a video; 0 = num_video_frames spread over it")
    instruction: str | None = option(None, "navigation instructions 'raw' or 'normalised'; stored in the checkpoint")
    answers_visible: bool = option(False, "streaming: later decisions see earlier true answers (measured worse)")
    max_decisions: int | None = option(
        None, "streaming: longest episode in decisions; longer ones are cut into windows"
    )
    grounding_questions: float = option(
        0.0, "streaming: mean number of asides per decision that ask where an object is"
    )
    turn_degrees: int = option(15, "next-frame loss: yaw of one low-level turn, where a registry entry names none")
    frame_per_action: bool = option(
        True, "next-frame loss: one picture per low-level action; False (by the clock) leaves motions unknown"
    )
    names_place: bool = option(False, "streaming: answers first say where the goal is, stored in the checkpoint")
    learn_decisions: bool = option(
        True, "streaming: False trains the grounding questions only (a stage before walking)"
    )
    object_masks: str | None = option(
        None, "folder or objects.jsonl of make_object_masks.py (scene_split); default: beside the pictures"
    )
    tokenization: str | None = option(None, "'navila' cuts texts as the published weights need it, 'plain' does not")
    broken_samples: str = option("skip", "skip (counted, reported) or raise")
    min_tiles: int = option(1, "fewest tiles of a dynamic picture")
    max_tiles: int = option(12, "most tiles of a dynamic picture, of the largest scale with dynamic_s2")
    video_max_tiles: int = option(1, "most tiles of a video frame")
    max_num_images: int | None = option(None, "pictures kept of a sample")
    navila_video_sampler: bool = option(False, "kept for old scripts")
    navila_video_sampler_v2: bool = option(False, "kept for old scripts")


def no_type_check(kind: type) -> type:
    """Leaves a class as it is. Its name tells jaxtyping, which checks this package under pytest, to leave it too:
    transformers' own defaults (int 0 for a float) do not pass, and typing's decorator hides annotations from parsers.
    """
    return kind


@no_type_check
@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """How it is trained: everything of transformers' Trainer, and what this package adds."""

    cache_dir: str | None = option(None, "where downloaded checkpoints are kept")
    optim: str = option("adamw_torch_fused", "optimizer; the fused AdamW is adamw_torch in fewer kernels")
    remove_unused_columns: bool = option(False, "must stay False: samples are not table rows")
    report_to: None | str | list[str] = option(  # noqa: RUF009, RUF036  (this order is what the parser understands)
        "auto", "tensorboard (auto: when installed), wandb, trackio, none, or several by commas"
    )
    logging_steps: float = option(10, "steps between two log lines")
    logging_nan_inf_filter: bool = option(False, "hide non-finite losses; False stops with an error instead")
    logging_dir: str | None = option(None, "folder of the TensorBoard files (default: OUTPUT_DIR/runs)")
    log_sample_ids: bool = option(False, "write the names of the samples of every step into OUTPUT_DIR/logs")
    mpt_attn_impl: str = option("triton", "kept for old scripts")

    stage: str | None = option(None, "named row of settings: align, pretrain or sft; flags that are given win")
    tune_vision_tower: bool = option(False, "train the vision tower")
    tune_language_model: bool = option(False, "train the language model")
    tune_mm_projector: bool = option(False, "train the projector")
    tune_background_projector: bool | None = option(None, "train it (scene_split; default: as tune_mm_projector)")
    tune_object_projector: bool | None = option(None, "train it (scene_split; default: as tune_mm_projector)")
    tune_object_tower: bool | None = option(None, "train it (scene_split; default: as tune_vision_tower)")
    tune_prefusion: bool | None = option(None, "train it (scene_split; default: as tune_mm_projector)")
    tune_last_layers: int | None = option(None, "of a trained language model, train so many last layers and no others")
    background_projector_lr: float | None = option(None, "its learning rate (default: mm_projector_lr)")
    object_projector_lr: float | None = option(None, "its learning rate (default: mm_projector_lr)")
    object_tower_lr: float | None = option(None, "its learning rate (default: vision_tower_lr)")
    prefusion_lr: float | None = option(None, "learning rate of the pre-fusion layers (default: learning_rate)")
    mm_projector_lr: float | None = option(None, "learning rate of the projector (default: learning_rate)")
    vision_tower_lr: float | None = option(None, "learning rate of the vision tower (default: learning_rate)")
    model_dtype: str = option("torch.bfloat16", "dtype of the weights; not given: float32, or bfloat16 under DeepSpeed")
    model_max_length: int = option(512, "longest sequence in tokens, pictures included")

    sampler: str = option("shuffle", "order of the samples: shuffle, length or modality_length")
    longvila_sampler: bool = option(False, "published spelling; same as --sampler shuffle")
    group_by_modality_length: bool = option(False, "published spelling; same as --sampler modality_length")
    packing: str = field(
        default="auto",
        metadata={
            "help": "samples end to end in one row, unseen by each other, instead of padded rows: True, False or auto "
            "(wherever the attention has a kernel for it)",
            "nargs": "?",
            "const": "True",
        },
    )
    tokens_per_batch: int = option(
        -1, "fill packed batches up to so many tokens; -1: per_device_train_batch_size samples each"
    )

    save_seconds: float = option(
        -1.0, "seconds of training between two checkpoints, beside save_steps; -1 = by steps only"
    )
    save_async: bool = option(False, "go on training while a copy of the states is written; not under DeepSpeed")
    max_train_seconds: float = option(-1.0, "wall-clock budget: warm-up and decay follow the time, not the steps")
    total_time_limit: float = option(-1.0, "minutes after which the run saves, stops and exits with 124; -1 = never")
    pre_terminate_time: float = option(10.0, "minutes before total_time_limit at which it saves")
    progress_seconds: float = option(5.0, "seconds between two progress lines when the output is no terminal")

    enable_autoregressive: bool = option(False, "also predict the features of the next frame (training only)")
    autoregressive_config: str | None = option(
        None, """keys of the next-frame loss: '{"num_hist": 3, "loss_weight": 0.1}', or a YAML or JSON file"""
    )
    autoregressive_depth: bool = option(
        False, "also predict the depth of the next frame, which the data holds (vila-world write --depth)"
    )
    autoregressive_lr: float | None = option(None, "learning rate of the predictor (default: learning_rate)")

    bits: int = option(16, "of the language model's weights: 16, or 8 and 4 with adapters beside them")
    double_quant: bool = option(True, "quantise the quantisation constants (bits 4)")
    quant_type: str = option("nf4", "fp4 or nf4 (bits 4)")
    lora_enable: bool = option(False, "train low-rank adapters; the projector is trained whole unless tuned otherwise")
    use_dora: bool = option(False, "adapters that scale direction and length of a weight apart (DoRA)")
    lora_r: int = option(64, "rank of the adapters")
    lora_alpha: int = option(16, "scale of the adapters")
    lora_dropout: float = option(0.05, "dropout of the adapters")
    lora_weight_path: str = option("", "folder of an earlier run whose adapters are gone on with")
    lora_bias: str = option("none", "trained biases: none, lora_only (of adapted layers), all (of adapted parts)")
    lora_llm: bool = option(False, "adapters in the language model; assumed where lora_vt is not given either")
    lora_vt: bool = option(False, "adapters in the vision tower")
    dpo: bool = option(False, "preference training")
    dpo_beta: float = option(0.1, "temperature of preference training")
    seq_parallel_size: int = option(-1, "processes that share one sequence; -1 = each has its own")
    seq_parallel_ring_size: int = option(-1, "factor of seq_parallel_size that is a ring; -1 = 1, all Ulysses")
    seq_parallel_ring_type: str = option("ring_varlen", "ring_varlen, or zigzag_ring_varlen (evens out the work)")
    debug_e2e: bool = option(False, "kept for old scripts")

    def __post_init__(self) -> None:
        self.report_to = _reporters(self.report_to)
        self.packing = _packing(self.packing)
        super().__post_init__()


def _packing(wanted: str | bool) -> str:
    """True, False or auto, as the other flags are written."""
    known = {"true": "True", "false": "False", "auto": "auto"}
    if str(wanted).lower() not in known:
        raise ValueError(f"packing is '{wanted}', expected True, False or auto")
    return known[str(wanted).lower()]


def _reporters(wanted: str | list[str] | None) -> list[str]:
    """`auto` is TensorBoard where it is installed; several names are separated by commas.

    Raises:
        ValueError: an unknown name, or one whose package is not installed.
    """
    names = wanted.split(",") if isinstance(wanted, str) else list(wanted or [])
    names = [name.strip() for name in names if name.strip() not in ("", "none")]
    if names == ["auto"]:
        if not find_spec("tensorboard"):
            logger.info(
                "no TensorBoard files: pip install tensorboard to have them, --report_to none to leave them out"
            )
            return []
        return ["tensorboard"]
    known = sorted(INTEGRATION_TO_CALLBACK)
    for name in names:
        if name not in (*known, "all"):
            raise ValueError(f"report_to names '{name}'{suggest(name, known)}; expected {', '.join(known)} or none")
        if name in PACKAGED and not find_spec(name):
            raise ValueError(
                f"report_to names {name}, which is not installed; pip install {name}, or give another or none"
            )
    return names
