"""The protocol card, cameras that must fit, and comparisons that must be fair."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from llava.eval.compare import compare_results, comparison_table, main
from llava.eval.navigation_task import NavigationOptions, protocol_card
from llava.eval.populations import POPULATIONS
from llava.eval.protocol import compare_cameras, episodes_hash
from llava.eval.results import write_json
from llava.eval.tables import text_of
from llava.eval.tasks import Request, Task
from llava.navigation.worlds.episode_files import write_episodes
from llava.navigation.worlds.episodes import make_episodes

CAMERA = {"height_m": 1.25, "pitch_deg": 0.0, "hfov_deg": 90.0, "width": 64, "height": 64}


def test_the_same_camera_is_silent(caplog):
    assert compare_cameras(CAMERA, dict(CAMERA)) == []
    assert not caplog.records


def test_another_field_of_view_is_an_error_until_it_is_allowed():
    used = {**CAMERA, "hfov_deg": 79.0}
    with pytest.raises(ValueError, match=r"hfov_deg 90 -> 79.*--allow-camera-mismatch"):
        compare_cameras(CAMERA, used)
    assert compare_cameras(CAMERA, used, allow_mismatch=True) == ["hfov_deg 90 -> 79"]


def test_another_size_is_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        compare_cameras(CAMERA, {**CAMERA, "width": 128, "height": 128})
    assert "width 64 -> 128" in caplog.text


def test_a_checkpoint_without_a_camera_is_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        compare_cameras(None, CAMERA)
    assert "the checkpoint stores none" in caplog.text


def test_the_data_hash_follows_order_and_words(episodes):
    assert episodes_hash(episodes) == episodes_hash(list(episodes))
    assert episodes_hash(episodes) != episodes_hash(episodes[::-1])


def test_the_card_names_what_makes_numbers_comparable(brightness):
    options = NavigationOptions(episodes=3, max_steps=60)
    population = POPULATIONS["embedded"](options, None, None)
    card = protocol_card("toy", options, population, brightness(), CAMERA, checkpoint={"fingerprint": "abc"}).to_dict()
    assert card["num_episodes"] == 3
    assert card["turn_degrees"] == 15
    assert card["max_steps"] == 60
    assert card["dtw_backend"] == "exact"
    assert card["policy"]["fingerprint"] == "abc"
    assert "95 %" in card["interval"]
    assert card["trained_camera"] == CAMERA
    assert card["versions"]["torch"]


def test_options_are_checked():
    request = Request(model=lambda: None, folder=Path(), overrides={"max_step": 3})
    with pytest.raises(ValueError, match="unknown option 'max_step'; did you mean 'max_steps'"):
        NavigationOptions.of(Task(name="toy"), request)
    with pytest.raises(ValueError, match="0 episodes"):
        NavigationOptions(episodes=0)


def test_missing_episode_files_say_where_they_were_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no val_unseen.json.gz in .*--data-root"):
        POPULATIONS["embedded"](NavigationOptions(), tmp_path, None)
    with pytest.raises(FileNotFoundError, match="needs its episode files"):
        POPULATIONS["habitat"](NavigationOptions(), None, None)


def test_rxr_is_read_by_role_and_language(tmp_path):
    base = make_episodes("one_room", [0])[0]
    spoken = [replace(base, episode_id=str(i), language=lang) for i, lang in enumerate(("en-US", "hi-IN", "en-IN"))]
    write_episodes(tmp_path / "rxr/val_unseen_guide.json.gz", spoken)
    options = NavigationOptions(population="habitat", dataset="rxr", role="guide", languages="en-US, en-IN")
    found = POPULATIONS["habitat"](options, tmp_path, None)
    assert [episode.episode_id for episode in found.episodes] == ["0", "2"]
    assert "val_unseen_guide.json.gz, instructions in en-US, en-IN" in found.description
    with pytest.raises(FileNotFoundError, match=r"no val_unseen_follower.json.gz"):
        POPULATIONS["habitat"](replace(options, role="follower"), tmp_path, None)
    with pytest.raises(ValueError, match=r"languages is 'te-IN', but the episodes are in en-IN, en-US, hi-IN"):
        POPULATIONS["habitat"](replace(options, languages="te-IN"), tmp_path, None)


def result(successes, **protocol):
    card = {"data_hash": "h", "max_steps": 60, "success_radii_m": [3.0, 1.0], **protocol}
    return {
        "protocol": card,
        "episodes": {str(i): {"success": float(s), "spl": s / 2} for i, s in enumerate(successes)},
    }


def test_two_results_are_compared_episode_by_episode():
    rows = compare_results(result([0] * 9 + [1]), result([1] * 9 + [0]))
    assert rows["success"]["difference"] == pytest.approx(0.8)
    assert (rows["success"]["only_first"], rows["success"]["only_second"]) == (1, 9)
    assert "p_value" not in rows["spl"]
    assert max(map(len, text_of(comparison_table(rows)).splitlines())) <= 100


def test_results_under_two_protocols_are_not_compared():
    with pytest.raises(ValueError, match="differ in data_hash, max_steps"):
        compare_results(result([1]), result([1], data_hash="g", max_steps=9))


def test_the_comparison_is_a_command(tmp_path, capsys):
    for name, successes in (("a", [0, 1]), ("b", [1, 1])):
        write_json(tmp_path / name / "results.json", result(successes))
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "2 episodes in common" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(tmp_path / "a"), str(tmp_path / "none")])
