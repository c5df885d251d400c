"""Where a model's prediction of the next frame is wrong: heat maps over the frames of walks, and a page with numbers.

python -m playground.show_reconstruction runs/world/models/streaming --data_root runs/world/data --out runs/heat_maps
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

import llava
from llava.video.error_picture import ErrorRow, draw_error_sheet, scale_of
from playground.demo.report.page import STYLE
from playground.reconstruction_walks import PredictedFrame, Walk, predict_walks

CLASSES = ("forward", "turn", "both", "still", "unknown")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="show_reconstruction", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("model", metavar="CKPT", help="checkpoint that was trained on walks with the next-frame loss")
    add("--data_root", "--data-root", type=Path, required=True, help="data set of vila-world write")
    add("--split", default="val_unseen", help="train for houses of the training (val_unseen)")
    add("--out", type=Path, required=True, help="folder for the pictures, index.html and figures.json")
    add("--episodes", type=int, default=4, help="spread evenly over the split (4)")
    add("--frames", type=int, default=8, help="predicted frames per episode, at most (8)")
    add("--teacher", type=Path, help="checkpoint from which the training of a tuned tower began")
    add("--device", help="cpu, cuda, cuda:1 (cuda where there is one)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(sys.argv[1:] if arguments is None else list(arguments))
    try:
        if options.episodes < 1 or options.frames < 1:
            raise ValueError(f"--episodes is {options.episodes}, --frames {options.frames}, expected at least 1")
        model = llava.load(options.model, surprise=True, teacher=options.teacher, device=options.device)
        sizes = {"num_episodes": options.episodes, "num_frames": options.frames}
        walks = predict_walks(model, options.data_root, options.split, **sizes)
        facts = {"model": options.model, "data": str(options.data_root), "split": options.split}
        page = write(walks, facts, options.out)
    except (ValueError, OSError) as error:
        print(f"show_reconstruction: error: {error}", file=sys.stderr)
        return 1
    print(page)
    return 0


def write(walks: Sequence[Walk], facts: dict[str, str], out: Path) -> Path:
    """A picture per walk, the numbers, and a page with both; all pictures share one colour scale."""
    sheets = [[row_of(frame) for frame in walk.frames] for walk in walks]
    largest = scale_of([row for sheet in sheets for row in sheet])
    out.mkdir(parents=True, exist_ok=True)
    pictures = []
    for walk, sheet in zip(walks, sheets, strict=True):
        pictures.append(out / f"episode-{walk.episode}.png")
        title = f"Episode {walk.episode}: {walk.instruction}"
        draw_error_sheet(sheet, title, largest=largest).save(pictures[-1])
    figures = {**facts, "by_motion": skills(walks)}
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    page = out / "index.html"
    page.write_text(render(figures, walks, pictures), encoding="utf-8")
    return page


def row_of(frame: PredictedFrame) -> ErrorRow:
    return ErrorRow(
        seen=frame.seen,
        following=frame.following,
        error=frame.error,
        copy_error=frame.copied,
        title=f"step {frame.steps[0]:g} to {frame.steps[1]:g}\n{frame.site} site",
        note=describe(frame.motion),
    )


def describe(motion: Float[np.ndarray, "3"]) -> str:
    """Such as `forward 0.75 m` and `left 30°`, a line each."""
    if np.isnan(motion).any():
        return "motion unknown"
    ahead, yaw = float(motion[0]), float(motion[1])
    parts = [f"forward {ahead:g} m"] if ahead else []
    parts += [f"{'left' if yaw > 0 else 'right'} {abs(yaw):g}°"] if yaw else []
    return "\n".join(parts) or "stands still"


def class_of(motion: Float[np.ndarray, "3"]) -> str:
    if np.isnan(motion).any():
        return "unknown"
    moves, turns = bool(motion[0]), bool(motion[1])
    return {(True, False): "forward", (False, True): "turn", (True, True): "both"}.get((moves, turns), "still")


def skills(walks: Sequence[Walk]) -> dict[str, dict[str, Any]]:
    """Per class of motion: predicted frames, mean errors, and the skill of their sums (None where nothing changed)."""
    frames = [frame for walk in walks for frame in walk.frames]
    found = {}
    for name in ("all", *CLASSES):
        chosen = [frame for frame in frames if name in ("all", class_of(frame.motion))]
        if chosen:
            error, copied = (float(np.mean([getattr(f, key).mean() for f in chosen])) for key in ("error", "copied"))
            skill = 1 - error / copied if copied > 0 else None
            found[name] = {"frames": len(chosen), "mse": error, "copy_mse": copied, "skill": skill}
    return found


def render(figures: dict[str, Any], walks: Sequence[Walk], pictures: Sequence[Path]) -> str:
    """One page without any other file."""
    rows = "".join(_table_row(name, row) for name, row in figures["by_motion"].items())
    images = "".join(
        f'<figure><img alt="episode {escape(walk.episode)}" src="data:image/png;base64,'
        f'{base64.b64encode(picture.read_bytes()).decode()}"><figcaption>{escape(walk.instruction)}</figcaption></figure>'
        for walk, picture in zip(walks, pictures, strict=True)
    )
    of_training = " The model was trained on such walks." if figures["split"] == "train" else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Prediction of the next frame</title>'
        f"<style>{STYLE.read_text()}</style></head><body><main><h1>Prediction of the next frame</h1>"
        f'<p class="quiet">{escape(figures["model"])}, walks of {escape(figures["data"])}, split '
        f"{escape(figures['split'])}.{of_training} Errors are squared, on the targets of the training; "
        "skill = 1 - error / error of copying the last frame.</p>"
        '<section><h2>By motion</h2><div class="scroll"><table><tr><th></th><th>frames</th><th>error</th>'
        f"<th>error of copying</th><th>skill</th></tr>{rows}</table></div></section>"
        f'<section><h2>Walks</h2><div class="episodes">{images}</div></section></main></body></html>\n'
    )


def _table_row(name: str, row: dict[str, Any]) -> str:
    skill = "–" if row["skill"] is None else f"{row['skill']:+.3f}"
    return (
        f'<tr class="model"><td>{escape(name)}</td><td>{row["frames"]}</td><td>{row["mse"]:.3g}</td>'
        f"<td>{row['copy_mse']:.3g}</td><td>{skill}</td></tr>"
    )


if __name__ == "__main__":
    raise SystemExit(main())
