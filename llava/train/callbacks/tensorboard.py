"""TensorBoard files in a folder that the caller chooses (transformers reads it from the environment only)."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback


class _FolderTensorBoard(TensorBoardCallback):
    """Opens its writer when training begins, so that only rank 0 makes files."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.logging_dir = folder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and self.tb_writer is None:  # steps that a restart trains again are dropped
            self.tb_writer = self._SummaryWriter(log_dir=self.logging_dir, purge_step=state.global_step + 1)
        super().on_train_begin(args, state, control, **{k: v for k, v in kwargs.items() if k != "model"})


def tensorboard(folder: str) -> TrainerCallback:
    """The callback that writes all logged numbers to `folder`.

    Raises:
        RuntimeError: tensorboard is not installed.
    """
    return _FolderTensorBoard(folder)
