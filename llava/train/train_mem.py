"""`train` for large models: activations are recomputed in the backward pass unless a flag says otherwise."""

import sys
from collections.abc import Sequence

from llava.train.train import main as _main

DEFAULTS = {"gradient_checkpointing": True}


def main(argv: Sequence[str] | None = None) -> int:
    """Same arguments and exit status as `llava.train.train`."""
    return _main(argv, defaults=DEFAULTS)


if __name__ == "__main__":
    sys.exit(main())
