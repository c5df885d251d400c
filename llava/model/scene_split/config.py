"""What a model must know of the background/object split, valid from birth; importing this needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from llava.utils.registry import suggest

if TYPE_CHECKING:
    from llava.scene.patch_mask import PatchRule

POSITIONS = ("in_place", "own_range", "sequential")
NUM_SEPARATORS = 4
"""Around the two groups of a picture."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "positions": POSITIONS,
    "background_per": ("picture", "clip"),
    "missing_masks": ("background", "error"),
}
GROUPS = ("both", "background", "objects")
"""What of a picture a training shows to the language model."""
BUILT_WITH = ("shared_encoder", "shared_projectors", "separators", "prefusion_layers")
"""Settings that decide which weights and tokens a model has."""
_FLAGS = ("bit_exact", "shared_encoder", "shared_projectors", "separators")
_COUNTS = ("prefusion_layers", "dilation")


@dataclass(frozen=True, kw_only=True)
class SceneSplitConfig:
    """How a picture becomes a background and objects, and how both reach the language model.

    Attributes:
        detector: name of the detector that finds the objects; None = callers bring their own masks.
        detector_options: its options as plain values; they may hold neither classes nor tensors.
        dilation, bit_exact, min_share: when a patch is an object patch, see `scene.patch_mask.PatchRule`.
        shared_encoder: one vision tower for both groups; False gives objects a copy of their own.
        shared_projectors: `mm_projector` for both groups; False gives each group a copy of its own.
        separators: the four tokens around the groups, see `separators.py`.
        positions: where the tokens stand for the language model, see `layout.py`.
        background_per: frames of a clip have a background each, or one for all: that of the first. In training the
            pictures of a sample are one clip.
        missing_masks: in training, a picture without a readable mask is all "background", or its sample is left out as
            a broken one ("error").
        prefusion_layers: transformer layers in front of the language model; 0 = none.
    """

    __no_type_check__ = True  # values come from files: the checks below answer, under pytest too

    detector: str | None = None
    detector_options: Mapping[str, Any] = field(default_factory=dict)
    dilation: int = 0
    bit_exact: bool = True
    min_share: float = 0.0
    shared_encoder: bool = True
    shared_projectors: bool = True
    separators: bool = True
    positions: str = "in_place"
    background_per: str = "picture"
    missing_masks: str = "background"
    prefusion_layers: int = 0

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                hint = suggest(value, list(allowed)) if isinstance(value, str) else ""
                raise ValueError(f"{name} is {value!r}, expected one of {allowed}{hint}")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected True or False")
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} is {value!r}, expected a whole number of at least 0")
        if isinstance(self.min_share, bool) or not isinstance(self.min_share, int | float):
            raise ValueError(f"min_share is {self.min_share!r}, expected a number of 0 to 1")
        self.patch_rule(patch_size=1, cell=1)  # its combinations are checked there
        self._check_detector()

    @classmethod
    def read(cls, config: SceneSplitConfig | Mapping[str, Any] | None = None) -> SceneSplitConfig:
        """From a plain dict of the keys above, as `config.json` stores it."""
        if isinstance(config, SceneSplitConfig):
            return config
        known = [each.name for each in fields(cls)]
        for key in config or {}:
            if key not in known:
                raise ValueError(f"scene_split has no option '{key}'{suggest(key, known)}")
        return cls(**(config or {}))

    def changed(self, keys: Mapping[str, Any]) -> SceneSplitConfig:
        """With some keys changed that need no other weights and no other tokens.

        Raises:
            ValueError: for a key that the model was built with.
        """
        new = SceneSplitConfig.read({**self.to_dict(), **keys})
        for name in BUILT_WITH:
            if getattr(new, name) != getattr(self, name):
                raise ValueError(
                    f"{name} is {getattr(new, name)!r}, the model was built with {getattr(self, name)!r}; leave it "
                    "out, or start from a model without scene_split"
                )
        return new

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "detector_options": dict(self.detector_options)}

    def slots_of(self, num_places: int) -> int:
        """Positions of a sequence that a picture of so many visual tokens takes, however it is split."""
        return num_places + (NUM_SEPARATORS if self.separators else 0)

    def patch_rule(self, patch_size: int, cell: int) -> PatchRule:
        """The rule for masks of a tower with such patches, whose projector merges cell x cell of them."""
        from llava.scene.patch_mask import PatchRule

        shared = {"dilation": self.dilation, "bit_exact": self.bit_exact, "min_share": self.min_share}
        return PatchRule(patch_size=patch_size, cell=cell, **shared)

    def _check_detector(self) -> None:
        if self.detector is not None and (not isinstance(self.detector, str) or not self.detector):
            raise ValueError(f"detector is {self.detector!r}, expected a name such as 'precomputed', or None")
        if not isinstance(self.detector_options, Mapping):
            raise ValueError(f"detector_options are {self.detector_options!r}, expected a dict of options")
        if self.detector is None and self.detector_options:
            raise ValueError(
                f"detector_options are {dict(self.detector_options)} and there is no detector, expected one: name it "
                "in detector, or leave its options out"
            )
        for key, value in self.detector_options.items():
            if not _is_plain(value):
                raise ValueError(
                    f"detector_options['{key}'] is {value!r}, expected a plain value (number, text, list, dict, None) "
                    "that config.json can hold"
                )


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, bool | int | float | str)
