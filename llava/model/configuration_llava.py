"""`LlavaConfig`: one config for the three parts of a model and for what must travel with its weights."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from transformers.configuration_utils import PreTrainedConfig

from llava.model.multimodal_encoder.families import family_of, resolution_of, scales_of, square_side

if TYPE_CHECKING:
    from llava.batch import VisualSpec
    from llava.utils.anyres import AnyresRule

ROW_ORDER_KEYS = ("image_encoder", "video_encoder", "max_tiles", "video_max_tiles", "dynamic_s2")
"""Keys that only NVILA writes: their presence means that `mlp_downsample` was trained with row-major tokens."""


class LlavaConfig(PreTrainedConfig):
    """Config of a vision-language model; keys that it does not know survive a load and a save.

    A part (`llm_cfg`, `vision_tower_cfg`, `mm_projector_cfg`) is a folder or hub id whose weights are read, or a dict /
    config object of a part with fresh weights (for the projector, a str is its type). The stored `_name_or_path` of a
    config is the path of the machine that wrote it; it is dropped here and no loader looks at it.

    Attributes:
        version: conversation template that the model was trained with.
        image_token_id: id of `<image>`; may lie beyond the embedding rows, its row is never read.
        token_order: order of the merged tokens of `mlp_downsample`, "column" (VILA-1.5, NaVILA) or "row" (NVILA,
            new models).
        navigation_prompt: format, instruction treatment and number of frames of the navigation prompt.
        camera_profile: camera of the training data, compared with the camera at run time.
        tokenization_compat: fields of `TokenizationCompat`: how the texts of the training were cut. None = plainly.
        reconstruction: settings of the next-frame loss (`ReconstructionConfig`); None = absent.
        scene_split: settings of the background/object split (`SceneSplitConfig`); None = absent.
    """

    model_type = "llava"
    __no_type_check__ = True  # configs of transformers take any keyword; shape checks under pytest would refuse it
    has_no_defaults_at_init = True
    keys_to_ignore_at_inference: ClassVar[Any] = ["past_key_values", "hidden_states", "loss_terms"]

    llm_cfg: Any = None
    vision_tower_cfg: Any = None
    mm_projector_cfg: Any = None
    architectures: Any = None
    resume_path: Any = None
    hidden_size: int | None = None
    mm_hidden_size: int | None = None
    image_aspect_ratio: str | None = None
    num_video_frames: int | None = None
    fps: float | None = None
    mm_vision_select_layer: int | None = None
    mm_vision_select_feature: str | None = None
    mm_use_im_start_end: bool = False
    mm_use_im_patch_token: bool = False
    mm_projector_lr: float | None = None
    vision_tower_lr: float | None = None
    vision_resolution: int | None = None
    interpolate_mode: str | None = None
    s2: bool | None = None
    s2_scales: Any = None
    s2_max_split_size: int | None = None
    dynamic_s2: bool | None = None
    s2_resize_output_to_scale_idx: int | None = None
    num_time_tokens: int | None = None
    time_token_format: str | None = None
    time_token_ids: Any = None
    soft_ce_std: float = 1.0
    version: str | None = None
    image_token_id: int | None = None
    token_order: Any = None
    image_mean: Any = None
    image_std: Any = None
    navigation_prompt: Any = None
    camera_profile: Any = None
    tokenization_compat: Any = None
    reconstruction: Any = None
    scene_split: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("_name_or_path", None)
        super().__post_init__(**kwargs)
        if type(self) is not LlavaConfig:
            _register_models()

    @staticmethod
    def part_as_dict(part: Any) -> dict[str, Any] | None:
        """A part's settings, or None when the part is still a name or a path (settings unknown until it is built)."""
        if isinstance(part, PreTrainedConfig):
            return part.to_dict()
        return dict(part) if isinstance(part, dict) else None

    def vision_model_type(self) -> str | None:
        part = self.part_as_dict(self.vision_tower_cfg)
        return None if part is None else part.get("model_type")

    def pixel_statistics(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """(mean, std) per channel: stored values, else those with which the family of the tower was trained."""
        family = family_of(self.vision_model_type())
        mean, std = self.image_mean or family.image_mean, self.image_std or family.image_std
        return tuple(map(float, mean)), tuple(map(float, std))  # pyright: ignore[reportReturnType]

    def anyres_rule(self, tokens_per_image: int, side: int) -> AnyresRule | None:
        """How pictures of any size are read; None for models of other image modes."""
        mode = self.image_aspect_ratio or ""
        if not mode.startswith("anyres"):
            return None
        from llava.utils.anyres import AnyresRule, most_tiles_of, read_pinpoints

        return AnyresRule(
            resolutions=read_pinpoints(getattr(self, "image_grid_pinpoints", None), side),
            patches=math.isqrt(tokens_per_image),
            side=side,
            merge=getattr(self, "mm_patch_merge_type", None) or "flat",
            most_tiles=most_tiles_of(mode),
        )

    def view_rules(self, tokens_per_image: int, side: int) -> dict[str, Any]:
        """How pictures of any size are read, as fields of `VisualSpec`; at most one is not None."""
        from llava.utils.dynamic_s2 import dynamic_s2_rule

        patches = math.isqrt(tokens_per_image)
        return {"anyres": self.anyres_rule(tokens_per_image, side), "dynamic_s2": dynamic_s2_rule(self, patches)}

    def has_image_newline(self) -> bool:
        """Whether the rows of tiled pictures end with a trained vector."""
        is_anyres = (self.image_aspect_ratio or "").startswith("anyres")
        return is_anyres and "unpad" in (getattr(self, "mm_patch_merge_type", None) or "")

    def aspect_mode(self) -> Literal["resize", "pad", "crop", "dynamic", "dynamic_s2", "anyres"]:
        """How a picture becomes square: the stored mode, else the family's own (CLIP crops, the others resize)."""
        if self.image_aspect_ratio in ("resize", "pad", "crop", "dynamic", "dynamic_s2"):
            return self.image_aspect_ratio  # pyright: ignore[reportReturnType]
        if (self.image_aspect_ratio or "").startswith("anyres"):
            return "anyres"
        return family_of(self.vision_model_type()).aspect_mode

    def tiling(self) -> dict[str, int]:
        """Fewest and most tiles of a dynamic picture, as far as they are stored."""
        return {name: value for name in ("min_tiles", "max_tiles") if (value := getattr(self, name, None)) is not None}

    def slots_of(self, num_tokens: int) -> int:
        """Positions of a sequence that a picture of so many visual tokens takes."""
        from llava.model.scene_split.config import SceneSplitConfig

        return num_tokens if self.scene_split is None else SceneSplitConfig.read(self.scene_split).slots_of(num_tokens)

    def visual_spec(self) -> VisualSpec:
        """What the data side must know about the vision part.

        Raises:
            ValueError: if a part is still a path; build or load the model first and use `model.visual_spec`.
        """
        from llava.batch import VisualSpec
        from llava.model.multimodal_projector.base_projector import downsample_rate
        from llava.model.utils import count_visual_tokens

        tower = self.part_as_dict(self.vision_tower_cfg)
        if tower is None:
            raise ValueError(
                f"vision_tower_cfg is {self.vision_tower_cfg!r}, expected the settings of a tower; "
                "build or load the model and use model.visual_spec"
            )
        projector = self.part_as_dict(self.mm_projector_cfg) or {"mm_projector_type": self.mm_projector_cfg}
        rate = downsample_rate(projector.get("mm_projector_type") or "linear")
        mean, std = self.pixel_statistics()
        side, patch = resolution_of(self, tower["image_size"]), square_side(tower["patch_size"], "patch_size")
        keeps_prefix = self.mm_vision_select_feature == "cls_patch"
        prefix = family_of(self.vision_model_type()).num_prefix_tokens(tower) if keeps_prefix else 0
        tokens, scales = count_visual_tokens(side, patch, rate) + prefix, scales_of(self, side)
        image_size = scales[-1] if scales and not self.dynamic_s2 else side
        return VisualSpec(
            image_size=image_size,
            tokens_per_image=self.slots_of(tokens),
            image_mean=mean,
            image_std=std,
            aspect_mode=self.aspect_mode(),
            **self.tiling(),
            **self.view_rules(tokens, image_size),
        )


class LlavaLlamaConfig(LlavaConfig):
    """Config of a model whose language part is a Llama."""

    model_type = "llava_llama"


class LlavaQwenConfig(LlavaConfig):
    """Config of a model whose language part is a Qwen2 or Qwen3."""

    model_type = "llava_qwen"


class LlavaMistralConfig(LlavaConfig):
    """Config of a model whose language part is a Mistral."""

    model_type = "llava_mistral"


class LlavaMixtralConfig(LlavaConfig):
    """Config of a model whose language part is a Mixtral."""

    model_type = "llava_mixtral"


class LlavaGemmaConfig(LlavaConfig):
    """Config of a model whose language part is a Gemma 1, 2 or 3."""

    model_type = "llava_gemma"


class LlavaPhi3Config(LlavaConfig):
    """Config of a model whose language part is a Phi-3."""

    model_type = "llava_phi3"


FAMILIES = (
    LlavaLlamaConfig,
    LlavaQwenConfig,
    LlavaMistralConfig,
    LlavaMixtralConfig,
    LlavaGemmaConfig,
    LlavaPhi3Config,
)
"""One config per file `language_model/<model_type>.py`; `AutoConfig` learns them after `import llava`."""


@cache
def _register_models() -> None:
    """Model classes join `AutoModel` and `AutoModelForCausalLM` with the first config: only then is a model meant."""
    from transformers import AutoModel, AutoModelForCausalLM

    from llava.model.language_model import language_models

    for model_class in set(language_models().values()):
        for auto in (AutoModel, AutoModelForCausalLM):
            auto.register(model_class.config_class, model_class, exist_ok=True)


def register_configs() -> None:
    """Adds our configs to `AutoConfig`; called by `llava.model.auto_classes` once transformers is loaded."""
    from transformers.models.auto.configuration_auto import AutoConfig

    for config_class in FAMILIES:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
