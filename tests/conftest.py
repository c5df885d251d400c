"""Shared fixtures; shapes of public signatures are checked while tests run."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

_hook = install_import_hook("llava", "beartype.beartype")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("any machine", deadline=None)  # a busy one is slow, not wrong
settings.load_profile("any machine")

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of expected outputs of the original projects."""
    if not GOLDEN.is_dir():
        pytest.skip(f"expected outputs are not at {GOLDEN}")
    return GOLDEN
