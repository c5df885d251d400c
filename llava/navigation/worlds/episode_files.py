"""Episode files in the form of R2R-CE: `<split>.json.gz` and `<split>_gt.json.gz`, read and written."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llava.navigation.worlds.base import CameraProfile, Coordinates, Episode, Point

logger = logging.getLogger(__name__)

_KNOWN_INFO = {"geodesic_distance", "camera"}


def read_episodes(path: str | Path, ground_truth: str | Path | None = None) -> list[Episode]:
    """Episodes of an R2R-CE or RxR-CE file, with the ground truth of `<name>_gt.json.gz` beside it where there is one.

    Args:
        path: `<split>.json.gz` (or plain .json).
        ground_truth: where the dense ground truth lies if not beside `path`.
    """
    path = Path(path)
    content = read_json(path)
    if not isinstance(content, Mapping) or "episodes" not in content:
        found = sorted(content) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} has {found}, expected an object with the key 'episodes' (R2R-CE or RxR-CE)")
    if not content["episodes"]:
        raise ValueError(f"{path} has 0 episodes, expected at least one; write the split again")
    beside = Path(ground_truth) if ground_truth is not None else ground_truth_path(path)
    truth: dict[str, Any] = {}
    if beside.is_file():
        truth = read_json(beside)
    elif ground_truth is not None:
        raise FileNotFoundError(f"ground truth {beside} does not exist")
    episodes = [_read_episode(record, truth, path) for record in content["episodes"]]
    logger.info("read %d episodes from %s, %d with ground truth", len(episodes), path, len(truth))
    return episodes


load_episodes = read_episodes


def ground_truth_path(path: Path) -> Path:
    """`val_unseen.json.gz` -> `val_unseen_gt.json.gz`."""
    name, dot, suffix = path.name.partition(".")
    return path.with_name(f"{name}_gt{dot}{suffix}")


def read_json(path: Path) -> Any:
    """Content of a .json or .json.gz file."""
    if not path.is_file():
        raise FileNotFoundError(f"episode file {path} does not exist")
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            return json.load(file)
    except (json.JSONDecodeError, EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or cut off ({error}); write or download it again") from error


def _read_episode(record: Mapping[str, Any], truth: Mapping[str, Any], path: Path) -> Episode:
    try:
        instruction, info = record["instruction"], record.get("info") or {}
        dense = truth.get(str(record["episode_id"])) or {}
        camera = info.get("camera")
        return Episode(
            episode_id=str(record["episode_id"]),
            scene_id=record["scene_id"],
            instruction=instruction["instruction_text"],
            start_position=_point(record["start_position"]),
            start_rotation=_rotation(record["start_rotation"]),
            goals=tuple(_point(goal["position"]) for goal in record.get("goals") or ()),
            goal_radius=float((record.get("goals") or [{}])[0].get("radius") or 3.0),
            reference_path=tuple(_point(point) for point in record.get("reference_path") or ()),
            locations=tuple(_point(point) for point in dense.get("locations") or ()),
            actions=tuple(int(action) for action in dense.get("actions") or ()),
            geodesic_distance=info.get("geodesic_distance"),
            trajectory_id=int(record.get("trajectory_id") or 0),
            language=instruction.get("language", "en-US"),
            camera=CameraProfile.from_dict(camera) if camera else None,
            info={key: value for key, value in info.items() if key not in _KNOWN_INFO},
        )
    except (KeyError, TypeError) as error:
        name = record.get("episode_id", "?") if isinstance(record, Mapping) else record
        raise ValueError(
            f"episode {name} of {path} lacks or misuses the field {error}; expected R2R-CE records"
        ) from error


def _point(values: Coordinates) -> Point:
    x, y, z = values
    return float(x), float(y), float(z)


def _rotation(values: Coordinates) -> tuple[float, float, float, float]:
    x, y, z, w = values
    return float(x), float(y), float(z), float(w)


def episode_record(episode: Episode) -> dict[str, Any]:
    """The R2R-CE record of an episode."""
    info: dict[str, Any] = {"geodesic_distance": episode.geodesic_distance, **episode.info}
    if episode.camera is not None:
        info["camera"] = episode.camera.to_dict()
    return {
        "episode_id": int(episode.episode_id) if episode.episode_id.isdigit() else episode.episode_id,
        "trajectory_id": episode.trajectory_id,
        "scene_id": episode.scene_id,
        "start_position": list(episode.start_position),
        "start_rotation": list(episode.start_rotation),
        "info": info,
        "goals": [{"position": list(goal), "radius": episode.goal_radius} for goal in episode.goals],
        "instruction": {"instruction_text": episode.instruction, "language": episode.language},
        "reference_path": [list(point) for point in episode.reference_path],
    }


def truth_record(episode: Episode) -> dict[str, Any]:
    """The dense ground truth of an episode: positions without repetitions, all actions, how many go forward."""
    return {
        "locations": [list(point) for point in episode.locations],
        "forward_steps": sum(action == 1 for action in episode.actions),
        "actions": list(episode.actions),
    }


def write_episodes(path: str | Path, episodes: Iterable[Episode]) -> None:
    """Writes `path` (`<split>.json.gz`) and the ground truth beside it; a killed run leaves no half file."""
    path = Path(path)
    kept = list(episodes)
    write_json(
        path, {"episodes": [episode_record(episode) for episode in kept], "instruction_vocab": {"word_list": []}}
    )
    write_json(ground_truth_path(path), {episode.episode_id: truth_record(episode) for episode in kept})


def write_json(path: Path, content: Any) -> None:
    """Writes beside, then renames. The same content gives the same bytes (no time stamp in the gzip header)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(content).encode()
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(gzip.compress(data, 6, mtime=0) if path.suffix == ".gz" else data)
    partial.replace(path)
