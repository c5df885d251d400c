"""One answer to a question about pictures or a clip.

python -m llava.eval.run_vila --model-path CKPT --image-file kitchen.jpg --query "<image>\\nWhat is on the table?"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.run_navigation import add_model_arguments, generation_arguments, read_history
from llava.video.frame_sampling import uniform_indices


def interleave(query: str, pictures: Sequence[Any]) -> list[Any]:
    """Text and pictures in order: each `<image>` takes the next picture; pictures without one stand at the front.

    Raises:
        ValueError: the text asks for more or other pictures than there are.
    """
    parts = query.split(DEFAULT_IMAGE_TOKEN)
    asked = len(parts) - 1
    if asked not in (0, len(pictures)):
        raise ValueError(
            f"the query has {asked} {DEFAULT_IMAGE_TOKEN}, {len(pictures)} pictures were given; use one each, or none"
        )
    if asked == 0:
        return [*pictures, query]
    content: list[Any] = [parts[0]]
    for picture, text in zip(pictures, parts[1:], strict=True):
        content += [picture, text.removeprefix("\n")]  # a line break follows every picture anyway
    return [part for part in content if not isinstance(part, str) or part]


def read_pictures(options: argparse.Namespace, default_frames: int) -> list[np.ndarray]:
    """The given pictures, or frames spread over the clip; none for a question without media."""
    if options.image_file is None and options.video_file is None:
        return []
    frames = read_history(options.image_file, options.video_file, options.sep)
    if options.video_file is None:
        return frames
    return [frames[i] for i in uniform_indices(len(frames), options.num_video_frames or default_frames)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_model_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        answer = _answer(options)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    sys.stdout.write(answer + "\n")
    return 0


def _answer(options: argparse.Namespace) -> str:
    from PIL import Image

    import llava

    model = llava.load(options.model_path, options.model_base)
    if options.conv_mode:
        model.config.version = options.conv_mode
    pictures = read_pictures(options, model.config.num_video_frames or 8)
    prompt = interleave(options.query, [Image.fromarray(picture) for picture in pictures])
    return model.generate_content(prompt, **generation_arguments(options, 512))


if __name__ == "__main__":
    raise SystemExit(main())
