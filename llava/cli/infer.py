"""vila-infer: text, pictures and clips in, an answer out.

vila-infer -m CKPT --text "What does the robot do?" --media walk.mp4 kitchen.jpg
vila-infer -m CKPT --text "Where is the ball?" --media walk.mp4 --frames-by surprise --json
vila-infer -m CKPT --text "Is the door open?" --media hall.jpg --background-cache runs/backgrounds --profile
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llava.cli.infer_scene import SceneSession, add_scene_flags, check_scene

CANDIDATES_PER_FRAME = 8
DEFAULT_NUM_FRAMES = 8
DEFAULT_LENGTH = 512


@dataclass(frozen=True, kw_only=True)
class Medium:
    """One entry of --media as the model sees it; what `--json` prints.

    Attributes:
        frames: indices of the frames shown, [0] for a picture.
        times: when they were taken, in seconds; None where nobody knows.
        surprise: of the frames shown; None where it was not measured, null inside where nothing predicted the frame.
        candidates: indices among which surprise chose, and their surprise.
    """

    path: str
    kind: str
    num_frames: int
    frames: list[int]
    times: list[float] | None = None
    frames_by: str | None = None
    surprise: list[float | None] | None = None
    candidates: list[int] | None = None
    candidate_surprise: list[float | None] | None = None
    pictures: list[Any] = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(_without_pictures(self)).items() if key != "pictures"}


def _without_pictures(medium: Medium) -> Medium:
    return Medium(**{**vars(medium), "pictures": []})


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vila-infer",
        description=(__doc__ or "").splitlines()[0],
        usage='vila-infer -m CKPT --text "..." [--media FILE ...] [options]',
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=100),
    )
    add = parser.add_argument
    add("--model-path", "-m", required=True, metavar="CKPT", help="checkpoint folder or hub id")
    add("--model-base", metavar="CKPT", help="base of a checkpoint that holds only a difference to it")
    add("--lora-path", "-l", metavar="CKPT", help="adapter for the model of -m")
    add("--conv-mode", "-c", default="auto", metavar="NAME", help="conversation template (auto = as stored)")
    add("--text", required=True, help="question; <image> says where a medium stands (in front)")
    add("--media", nargs="+", default=[], metavar="FILE", help="pictures, videos, folders of frames")
    add("--num-video-frames", "-nf", type=int, metavar="N", help="shown of a clip (stored, or 8)")
    add("--frames-by", choices=("uniform", "surprise"), default="uniform", help="how they are chosen (uniform)")
    add("--candidates", type=int, metavar="N", help="frames among which surprise chooses (8 per frame shown)")
    add("--decoder", choices=("auto", "decord", "opencv"), default="auto", help="of video files (auto)")
    add("--max-new-tokens", type=int, metavar="N", help=f"of the answer ({DEFAULT_LENGTH})")
    add("--temperature", type=float, default=0.0, metavar="X", help="0 = greedy (0)")
    add("--top-p", type=float, metavar="X", help="nucleus of a sampled answer")
    add("--num-beams", type=int, default=1, metavar="N", help="beams (1)")
    add("--seed", type=int, metavar="N", help="of a sampled answer")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1 (cuda where there is one)")
    add("--json", action="store_true", help="answer and provenance: frames, times, surprise")
    add_scene_flags(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 with the answer on standard output; 1 with one line on standard error."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = build_parser().parse_args([with_hyphens(word) for word in given])
    try:
        check(options)
        result = answer(options)
    except (ValueError, OSError, KeyError, ImportError) as error:
        print(f"vila-infer: error: {_told(error)}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) if options.json else result["answer"])
    return 0


def with_hyphens(word: str) -> str:
    """--num_video_frames, as other programs of the family spell it, is --num-video-frames."""
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") and " " not in flag else word


def _told(error: Exception) -> str:
    if isinstance(error, ImportError) and error.name == "cv2":
        return "videos and frame folders are read with OpenCV: pip install opencv-python-headless"
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def check(options: argparse.Namespace) -> None:
    """Refuses what has no meaning before a model is loaded.

    Raises:
        ValueError: names the flag and what to do.
    """
    clips = [path for path in options.media if kind_of(path) != "picture"]
    for flag, given in {
        "--num-video-frames": options.num_video_frames is not None,
        "--frames-by surprise": options.frames_by == "surprise",
        "--decoder": options.decoder != "auto",
    }.items():
        if given and not clips:
            raise ValueError(f"{flag} speaks of clips and --media has none; give a video or a folder, or leave it out")
    if options.candidates is not None and options.frames_by != "surprise":
        raise ValueError("--candidates is read with --frames-by surprise; add it, or leave --candidates out")
    if options.temperature <= 0 and (options.top_p is not None or options.seed is not None):
        raise ValueError("--top-p and --seed are for sampled answers; add --temperature 0.7, or leave them out")
    for name in ("num_video_frames", "candidates", "max_new_tokens", "num_beams"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, expected at least 1")
    if options.lora_path and options.model_base:
        raise ValueError("--lora-path makes -m its base; leave --model-base out")
    check_scene(options)


def kind_of(path: str) -> str:
    """By what lies there, or by the name: "picture", "video" or "frame folder".

    Raises:
        ValueError: for an address or a filmstrip. FileNotFoundError: nothing lies there.
    """
    from llava.video.decode import IMAGE_SUFFIXES

    if "://" in path:
        raise ValueError(f"--media {path} is an address, expected a file; download it first")
    place = Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"--media {path} does not exist (working folder {Path.cwd()})")
    if place.is_dir():
        if (place / "filmstrip.json").is_file():
            raise ValueError(f"--media {path} holds one filmstrip, expected a picture per frame; write it as files")
        return "frame folder"
    return "picture" if place.suffix.lower() in (*IMAGE_SUFFIXES, ".gif", ".tif", ".tiff") else "video"


def answer(options: argparse.Namespace) -> dict[str, Any]:
    """The answer and where it comes from."""
    import torch

    from llava.eval.run_navigation import generation_arguments
    from llava.eval.run_vila import interleave

    opened = [open_medium(path, options.decoder) for path in options.media]  # a broken file is told at once
    model = load(options)
    media = [read_medium(path, source, model, options) for path, source in zip(options.media, opened, strict=True)]
    prompt = _flat(interleave(options.text, [medium.pictures for medium in media]))
    generation = {k: v for k, v in generation_arguments(options, DEFAULT_LENGTH).items() if v is not None}
    if options.seed is not None:
        torch.manual_seed(options.seed)
    scene = SceneSession(model, options)
    keywords = scene.keywords(media)
    answers = [model.generate_content(prompt, **generation, **keywords) for _ in range(options.repeat)]
    told: dict[str, Any] = {}
    if scene.is_wanted:
        scene.show(answers)
        scene.draw(answers[-1].report, media)
        told = {"requests": [each.report.to_json() for each in answers]}
    return {
        "answer": answers[-1].output if scene.is_wanted else answers[-1],
        "model": options.model_path,
        "adapter": options.lora_path,
        "conv_mode": model.config.version,
        "text": options.text,
        "media": [medium.to_json() for medium in media],
        "generation": {**generation, "seed": options.seed},
        **told,
    }


def load(options: argparse.Namespace) -> Any:
    """The model, with its predictor where surprise is asked for.

    Raises:
        ValueError: the checkpoint stores no conversation template and none was given, or cannot tell surprise.
    """
    import llava
    from llava.conversation import TEMPLATES, get_template
    from llava.model.autoregressive_reconstruction.surprise import require_predictor

    if options.conv_mode != "auto":
        get_template(options.conv_mode)  # a wrong name is told before the weights are read
    path, base = options.model_path, options.model_base
    if options.lora_path:
        path, base = options.lora_path, options.model_path
    model = llava.load(path, base, device=options.device, surprise=options.frames_by == "surprise")
    if getattr(model, "vision_tower", None) is None:
        raise ValueError(f"{path} is a language model without a vision tower; give a vision-language checkpoint")
    if options.frames_by == "surprise":
        require_predictor(model)
    if options.conv_mode != "auto":
        model.config.version = options.conv_mode
    if model.config.version is None:
        raise ValueError(f"{path} stores no conversation template; give --conv-mode, one of {', '.join(TEMPLATES)}")
    return model


def open_medium(path: str, decoder: str) -> Any:
    """A PIL picture, or an opened clip."""
    from llava.mm_utils import load_image
    from llava.video.decode import open_clip

    return load_image(path) if kind_of(path) == "picture" else open_clip(path, decoder)


def read_medium(path: str, opened: Any, model: Any, options: argparse.Namespace) -> Medium:
    """A picture, or the chosen frames of a clip."""
    from PIL import Image

    from llava.video.frame_sampling import uniform_indices

    kind, clip = kind_of(path), opened
    if kind == "picture":
        return Medium(path=path, kind=kind, num_frames=1, frames=[0], pictures=[opened])
    length, wanted = clip.info.num_frames, options.num_video_frames or model.config.num_video_frames
    wanted = wanted or DEFAULT_NUM_FRAMES
    facts: dict[str, Any] = {"path": path, "kind": kind, "num_frames": length, "frames_by": options.frames_by}
    if options.frames_by == "surprise":
        facts |= choose_by_surprise(clip, wanted, model, options)
    else:
        facts["frames"] = uniform_indices(length, wanted)
    pictures = [Image.fromarray(frame) for frame in clip.frames(facts["frames"])]
    return Medium(**facts, times=_times(clip, facts["frames"]), pictures=pictures)


def choose_by_surprise(clip: Any, wanted: int, model: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Surprise of evenly spread candidates, and the frames that it chooses; both ends of the clip are among them."""
    from llava.constants import DEFAULT_IMAGE_TOKEN
    from llava.video.frame_sampling import capped_indices
    from llava.video.frames_by_surprise import select_by_surprise

    count = options.candidates or CANDIDATES_PER_FRAME * wanted
    if count < wanted:
        raise ValueError(f"--candidates is {count}, expected at least the {wanted} frames that are shown")
    candidates = capped_indices(clip.info.num_frames, count)
    surprise, text = [math.nan], options.text.replace(DEFAULT_IMAGE_TOKEN, "")
    if len(candidates) > 1:
        seconds = None if model.config.navigation_prompt else _times(clip, candidates)  # those are trained on steps
        frames = list(clip.frames(candidates))
        surprise = model.frame_surprise(frames, text, times=seconds)[0].tolist()
    chosen = select_by_surprise(surprise, wanted)
    told = [None if math.isnan(value) else round(value, 6) for value in surprise]
    return {
        "frames": [candidates[place] for place in chosen],
        "surprise": [told[place] for place in chosen],
        "candidates": candidates,
        "candidate_surprise": told,
    }


def _times(clip: Any, indices: Sequence[int]) -> list[float] | None:
    """Seconds of a video file; None for a folder of frames."""
    return [round(seconds, 3) for seconds in clip.times(indices)] if clip.info.fps else None


def _flat(parts: Sequence[Any]) -> list[Any]:
    flat: list[Any] = []
    for part in parts:
        flat += part if isinstance(part, list) else [part]
    return flat


if __name__ == "__main__":
    raise SystemExit(main())
