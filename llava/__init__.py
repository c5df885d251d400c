"""Train, evaluate and serve vision-language models that watch video and move robots.

>>> import llava
>>> model = llava.load("checkpoints/my-model")
>>> print(model.generate_content([llava.Image("hall.jpg"), "Where is the door?"]))

Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llava.model.auto_classes import register_when_imported

if TYPE_CHECKING:
    from llava.entry import load
    from llava.media import File, Image, Media, Video

__version__ = "0.1.0"
__all__ = ["File", "Image", "Media", "Video", "__version__", "load"]

_HOME = {"load": "entry", "File": "media", "Image": "media", "Media": "media", "Video": "media"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'llava' has no attribute '{name}'")
    return getattr(import_module(f"llava.{_HOME[name]}"), name)


register_when_imported()
