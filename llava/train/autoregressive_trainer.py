"""The documented door to training with the next-frame loss; everything happens in `LLaVATrainer` and the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from llava.model.autoregressive_reconstruction.config import ReconstructionConfig
from llava.train.args import TrainingArguments
from llava.train.llava_trainer import LLaVATrainer


class AutoregressiveTrainer(LLaVATrainer):
    """`LLaVATrainer` that adds the next-frame loss to a model which does not have it yet.

    Batches carry `clips` (`batch.ClipBatch`), or `video_frames` [B, T, 3, H, W] as the documented form has it.

    Args:
        enable_autoregressive: False trains as `LLaVATrainer` does.
        autoregressive_config: `ReconstructionConfig` or a dict of its keys; None = what `model.config.reconstruction`
            holds, else the defaults for the model's tower.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train_dataset: Any = None,
        *,
        enable_autoregressive: bool = True,
        autoregressive_config: ReconstructionConfig | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if enable_autoregressive:
            known: Any = model
            default = None if known.config.reconstruction else {"embedding_dim": None}
            known.initialize_continuous_autoregressive_modules(autoregressive_config or default)
        elif autoregressive_config is not None:
            raise ValueError("autoregressive_config was given and enable_autoregressive is False; set it to True")
        super().__init__(model, args, train_dataset=train_dataset, **kwargs)
