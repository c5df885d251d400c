"""Documented path; the code is in `llava.model.sequence_parallel`."""

from llava.model.sequence_parallel import SplitLayout, build_split_layout, ring_attention

__all__ = ["SplitLayout", "build_split_layout", "ring_attention"]
