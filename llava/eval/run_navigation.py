"""One navigation decision from pictures on disk: the answer, and the action that is read from it.

python -m llava.eval.run_navigation --model-path CKPT --video-file walk.mp4 --query "Go to the red ball and stop."
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llava.eval.policies import Decision, EpisodeView, Policy
from llava.navigation.actions import Action, ActionKind


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that all one-shot entries share."""
    add = parser.add_argument
    add("--model-path", required=True, help="checkpoint folder")
    add("--model-base", help="base model of a checkpoint that holds only a difference to it")
    add("--image-file", help="pictures in order, joined by --sep; the last one is the current one")
    add("--video-file", help="video file or folder of frames")
    add("--num-video-frames", type=int, help="frames that are shown (default: the checkpoint's number)")
    add("--query", required=True, help="the instruction or question")
    add("--conv-mode", help="conversation template (default: the one stored in the checkpoint)")
    add("--sep", default=",", help="separator of --image-file")
    add("--temperature", type=float, default=0.0, help="0 = greedy")
    add("--top_p", "--top-p", type=float)
    add("--num_beams", "--num-beams", type=int, default=1)
    add("--max_new_tokens", "--max-new-tokens", type=int)


def generation_arguments(options: argparse.Namespace, default_length: int) -> dict[str, Any]:
    """transformers' names for the flags."""
    arguments: dict[str, Any] = {"do_sample": options.temperature > 0, "num_beams": options.num_beams}
    if options.temperature > 0:
        arguments |= {"temperature": options.temperature, "top_p": options.top_p}
    return arguments | {"max_new_tokens": options.max_new_tokens or default_length}


def read_history(image_file: str | None, video_file: str | None, sep: str = ",") -> list[np.ndarray]:
    """All pictures of a walk in order, uint8 [H, W, 3].

    Raises:
        ValueError: neither or both sources are given.
    """
    from llava.mm_utils import load_image
    from llava.video.decode import read_frames, video_info

    if image_file is not None and video_file is None:
        return [np.asarray(load_image(name.strip())) for name in image_file.split(sep)]
    if image_file is None and video_file is not None:
        return read_frames(video_file, range(video_info(video_file).num_frames))
    raise ValueError(f"got --image-file {image_file} and --video-file {video_file}, expected exactly one of them")


def decide_once(policy: Policy, instruction: str, frames: Sequence[np.ndarray]) -> Decision:
    """The decision at the last picture: with the others as history, or after deciding at each of them in order."""
    view = EpisodeView(key="walk", instruction=instruction)
    if policy.needs_every_frame:
        view.frames += frames
        return policy.act([view])[0]
    for frame in frames[:-1]:
        view.frames.append(frame)
        policy.act([view])
    view.frames.append(frames[-1])
    return policy.act([view])[0]


def describe_action(action: Action, *, forward_cm: int = 25, turn_degrees: int = 15) -> str:
    """In words, such as `move forward 75 cm` or `turn left 30 degrees`."""
    if action.kind is ActionKind.STOP:
        return "stop"
    if action.kind is ActionKind.FORWARD:
        return f"move forward {forward_cm * action.steps} cm"
    return f"turn {action.kind.name.lower()} {turn_degrees * action.steps} degrees"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_model_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        frames = read_history(options.image_file, options.video_file, options.sep)
        decision = _decide(options, frames)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    action = decision.action
    facts = {
        "action": action.kind.name,
        "steps": action.steps,
        "low_level": action.low_level(),
        "understood": decision.understood,
    }
    note = "" if decision.understood else " (the answer names no action; this is the declared fallback)"
    sys.stdout.write(f"answer: {decision.text}\naction: {describe_action(action)}{note}\n{json.dumps(facts)}\n")
    return 0


def _decide(options: argparse.Namespace, frames: Sequence[np.ndarray]) -> Decision:
    import llava
    from llava.eval.make_policy import make_policy
    from llava.eval.streaming_policy import StreamingPolicy

    if not Path(options.model_path).expanduser().exists():
        raise FileNotFoundError(f"checkpoint {options.model_path} does not exist; check --model-path")
    model = llava.load(options.model_path, options.model_base)
    policy = make_policy(
        model,
        conv_mode=options.conv_mode,
        max_new_tokens=options.max_new_tokens,
        num_frames=options.num_video_frames,
    )
    if options.temperature == 0 and options.num_beams == 1:
        return decide_once(policy, options.query, frames)
    if isinstance(policy, StreamingPolicy):
        raise ValueError(f"format '{policy.name}' answers greedily; leave out --temperature and --num_beams")
    return policy.sample(options.query, frames, **generation_arguments(options, 32))


if __name__ == "__main__":
    raise SystemExit(main())
