"""`train_mem` for long sequences on several machines: the processes of a machine share a sequence, machines share data.

Weights are divided over all processes where `--deepspeed` (ZeRO) or `--fsdp` says so. `--seq_parallel_size` sets other
groups.
"""

import sys
from collections.abc import Sequence

from llava.train.train import main as _main
from llava.train.train_mem import DEFAULTS
from llava.utils.distributed import local_world_size


def main(argv: Sequence[str] | None = None) -> int:
    """Same arguments and exit status as `llava.train.train`."""
    return _main(argv, defaults={**DEFAULTS, "seq_parallel_size": local_world_size()})


if __name__ == "__main__":
    sys.exit(main())
