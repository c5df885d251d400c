"""vila-inspect: what a checkpoint folder holds, told from its headers; no weights are loaded, nothing is downloaded.

vila-inspect checkpoints/llava-v1.5-7b
"""

from __future__ import annotations

from collections.abc import Sequence

from llava.model.checkpoints.__main__ import run_inspect


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when the checkpoint can be loaded as it is, 1 otherwise."""
    return run_inspect(arguments)
