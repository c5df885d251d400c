"""Documented path; the code is in `llava.model.sequence_parallel`."""

from llava.model.sequence_parallel import columns_to_heads, heads_to_columns

__all__ = ["columns_to_heads", "heads_to_columns"]
