"""`train_mem` for sequences that are too long for one GPU: all processes of the job share each sequence.

`--seq_parallel_size` says otherwise; where the language model has fewer heads, part of it goes to the ring.
"""

import sys
from collections.abc import Sequence

from llava.train.train import main as _main
from llava.train.train_mem import DEFAULTS
from llava.utils.distributed import world_size


def main(argv: Sequence[str] | None = None) -> int:
    """Same arguments and exit status as `llava.train.train`."""
    return _main(argv, defaults={**DEFAULTS, "seq_parallel_size": world_size()})


if __name__ == "__main__":
    sys.exit(main())
