"""One sequence over several processes: Ulysses, ring, or both. How it works: README.md of this folder."""

from llava.model.sequence_parallel.checks import check_model
from llava.model.sequence_parallel.groups import (
    RING_TYPES,
    SequenceGroup,
    SequenceParallelConfig,
    create_group,
    group_members,
)
from llava.model.sequence_parallel.layout import SplitLayout, build_split_layout
from llava.model.sequence_parallel.ring import ring_attention
from llava.model.sequence_parallel.split import ColumnSplit, whole_rows
from llava.model.sequence_parallel.ulysses import columns_to_heads, heads_to_columns

__all__ = [
    "RING_TYPES",
    "ColumnSplit",
    "SequenceGroup",
    "SequenceParallelConfig",
    "SplitLayout",
    "build_split_layout",
    "check_model",
    "columns_to_heads",
    "create_group",
    "group_members",
    "heads_to_columns",
    "ring_attention",
    "whole_rows",
]
