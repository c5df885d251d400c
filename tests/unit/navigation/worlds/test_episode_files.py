"""Episode files: R2R-CE's own form, and what is said when they are damaged."""

import gzip
import json

import pytest

from llava.navigation.worlds.base import heading_from_rotation
from llava.navigation.worlds.episode_files import read_episodes, write_episodes
from llava.navigation.worlds.episodes import make_episodes

R2R = {
    "episode_id": 71,
    "trajectory_id": 4,
    "scene_id": "mp3d/8WUmhLawc2A/8WUmhLawc2A.glb",
    "start_position": [10.25, 0.17, -3.5],
    "start_rotation": [0, 0.7071067811865475, 0, 0.7071067811865476],
    "info": {"geodesic_distance": 7.5},
    "goals": [{"position": [4.0, 0.17, -3.0], "radius": 3.0}],
    "instruction": {"instruction_text": "Go down the hall. ", "instruction_tokens": [3, 4, 0]},
    "reference_path": [[10.25, 0.17, -3.5], [4.0, 0.17, -3.0]],
}


def save(path, content):
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    return path


def test_a_true_r2r_ce_record_is_understood(tmp_path):
    save(
        tmp_path / "val_unseen_gt.json.gz",
        {"71": {"locations": [[10.25, 0.17, -3.5], [10.0, 0.17, -3.5]], "forward_steps": 1, "actions": [2, 1, 0]}},
    )
    (episode,) = read_episodes(save(tmp_path / "val_unseen.json.gz", {"episodes": [R2R], "instruction_vocab": {}}))
    assert episode.episode_id == "71" and episode.trajectory_id == 4
    assert episode.instruction == "Go down the hall. "
    assert episode.goals == ((4.0, 0.17, -3.0),) and episode.goal_radius == 3.0
    assert episode.locations[1] == (10.0, 0.17, -3.5) and episode.actions == (2, 1, 0)
    assert episode.geodesic_distance == 7.5 and episode.camera is None
    assert heading_from_rotation(episode.start_rotation) == pytest.approx(1.5707963)


def test_a_test_split_without_goals_and_truth_is_read(tmp_path):
    bare = {
        key: R2R[key]
        for key in ("episode_id", "trajectory_id", "scene_id", "start_position", "start_rotation", "instruction")
    }
    (episode,) = read_episodes(save(tmp_path / "test.json.gz", {"episodes": [bare]}))
    assert episode.goals == () and episode.locations == () and episode.geodesic_distance is None


def test_an_rxr_record_keeps_its_language(tmp_path):
    rxr = {**R2R, "instruction": {"instruction_id": "9", "instruction_text": "चलो", "language": "hi-IN"}}
    (episode,) = read_episodes(save(tmp_path / "guide.json.gz", {"episodes": [rxr]}))
    assert episode.language == "hi-IN"


def test_written_episodes_come_back_the_same_and_twice_the_same_bytes(tmp_path):
    episodes = make_episodes("multi_room", range(3))
    write_episodes(tmp_path / "train.json.gz", episodes)
    before = (tmp_path / "train.json.gz").read_bytes()
    back = read_episodes(tmp_path / "train.json.gz")
    for one, other in zip(episodes, back, strict=True):
        assert {k: v for k, v in vars(one).items() if k != "info"} == {
            k: v for k, v in vars(other).items() if k != "info"
        }
        assert json.loads(json.dumps(dict(one.info))) == dict(other.info)
    write_episodes(tmp_path / "train.json.gz", back)
    assert (tmp_path / "train.json.gz").read_bytes() == before


def test_damage_is_named_with_the_file(tmp_path):
    whole = save(tmp_path / "a.json.gz", {"episodes": [R2R]}).read_bytes()
    (tmp_path / "cut.json.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.json\.gz is damaged or cut off"):
        read_episodes(tmp_path / "cut.json.gz")
    with pytest.raises(ValueError, match="0 episodes"):
        read_episodes(save(tmp_path / "none.json.gz", {"episodes": []}))
    with pytest.raises(ValueError, match="expected an object with the key 'episodes'"):
        read_episodes(save(tmp_path / "list.json.gz", [R2R]))
    with pytest.raises(FileNotFoundError, match="absent"):
        read_episodes(tmp_path / "absent.json.gz")
    with pytest.raises(ValueError, match=r"episode 71 .* 'start_position'"):
        read_episodes(
            save(tmp_path / "b.json.gz", {"episodes": [{k: v for k, v in R2R.items() if k != "start_position"}]})
        )
