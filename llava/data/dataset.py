"""The names under which LLaVA and VILA offer their data; thin forms of what lies beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from llava.batch import VisualSpec
from llava.conversation import Conversation, get_template
from llava.data.base import DataContext, DataOptions, Dataset
from llava.data.builder import MixtureDataset, build_dataset
from llava.data.collate import DataCollator
from llava.data.dataset_impl import EnvDropDataset, LLaVADataset, VLNCEDataset
from llava.utils.tokenizer import ensure_special_tokens

__all__ = [
    "DataCollatorForSupervisedDataset",
    "LazyEnvDropDataset",
    "LazySupervisedDataset",
    "LazyVLNCEDataset",
    "SupervisedData",
    "make_supervised_data_module",
]


class SupervisedData(TypedDict):
    """Keyword arguments of a `Trainer`."""

    train_dataset: MixtureDataset
    eval_dataset: MixtureDataset | None
    data_collator: DataCollator


class _Lazy(Dataset):
    """The older constructor: one annotation file, one media folder, no registry."""

    def __init__(
        self,
        data_path: str | Path,
        image_folder: str | Path,
        tokenizer: Any,
        *,
        spec: VisualSpec,
        template: Conversation | str,
        options: DataOptions | None = None,
    ) -> None:
        template = get_template(template) if isinstance(template, str) else template
        context = DataContext(tokenizer=tokenizer, spec=spec, template=template, options=options or DataOptions())
        name = Path(data_path).stem
        super().__init__(name, context, data_path=data_path, media_dir=image_folder)  # pyright: ignore[reportCallIssue]


class LazySupervisedDataset(_Lazy, LLaVADataset):
    """LLaVA / ShareGPT records of one file."""


class LazyVLNCEDataset(_Lazy, VLNCEDataset):
    """NaVILA decisions of one file."""


class LazyEnvDropDataset(_Lazy, EnvDropDataset):
    """Walks and their instructions of one file."""


def DataCollatorForSupervisedDataset(tokenizer: Any, max_length: int | None = None, **options: Any) -> DataCollator:
    """A `DataCollator` with the ids of `tokenizer`; its other fields are given as options."""
    image_token_id = ensure_special_tokens(tokenizer)
    length = max_length or tokenizer.model_max_length
    return DataCollator(
        pad_token_id=tokenizer.pad_token_id, max_length=length, image_token_id=image_token_id, **options
    )


def make_supervised_data_module(
    tokenizer: Any,
    mixture: str,
    *,
    eval_mixture: str | None = None,
    max_length: int | None = None,
    collate: dict[str, Any] | None = None,
    **build: Any,
) -> SupervisedData:
    """Data sets and collator for a trainer.

    Args:
        collate: fields of `DataCollator`, e.g. {"mode": "pack"}.
        build: arguments of `build_dataset` (spec, template, options, registry, data_root).
    """
    return SupervisedData(
        train_dataset=build_dataset(mixture, tokenizer=tokenizer, **build),
        eval_dataset=build_dataset(eval_mixture, tokenizer=tokenizer, **build) if eval_mixture else None,
        data_collator=DataCollatorForSupervisedDataset(tokenizer, max_length, **(collate or {})),
    )
