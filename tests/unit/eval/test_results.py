"""Results: complete or they say so, written after every batch, never mixed from two protocols."""

import json

import pytest

from llava.eval.floors import ForwardPolicy, RandomPolicy, ReplayPolicy
from llava.eval.navigation_loop import run_batch
from llava.eval.navigation_task import NavigationOptions, evaluate_policy, measure_floors, protocol_card
from llava.eval.populations import POPULATIONS
from llava.eval.results import ResultFile, episode_record, is_finished, read_results, summarise, value_at
from llava.eval.tables import breakdown_table, navigation_table, summary_lines, text_of

OPTIONS = NavigationOptions(episodes=6, max_steps=60, batch_size=4)


@pytest.fixture(scope="module")
def population():
    return POPULATIONS["embedded"](OPTIONS, None, {"width": 16, "height": 16})


def card_of(population, policy):
    return protocol_card("toy", OPTIONS, population, policy)


def test_an_evaluation_has_its_card_its_summary_and_every_episode(population, brightness, tmp_path):
    policy, lines = brightness(), []
    evaluate_policy(population, policy, card_of(population, policy), OPTIONS, tmp_path, say=lines.append)
    content = read_results(tmp_path)
    assert content["complete"]
    assert len(content["episodes"]) == content["summary"]["total_episodes"] == 6
    assert content["protocol"]["num_episodes"] == content["protocol"]["num_scenes"] == 6
    assert content["protocol"]["camera"]["width"] == 16
    assert content["summary"]["cost"]["tokens_per_decision"] == 5
    assert content["summary"]["cost"]["fallback_rate"] > 0
    low, high = content["summary"]["intervals"]["success"]
    assert 0 <= low <= content["summary"]["mean_success"] <= high <= 1
    assert any("6/6 episodes" in line for line in lines)


class Killed(Exception):
    pass


def test_a_killed_evaluation_goes_on_where_it_was(population, brightness, tmp_path):
    policy = brightness()

    def die(line):
        raise Killed

    with pytest.raises(Killed):
        evaluate_policy(population, policy, card_of(population, policy), OPTIONS, tmp_path, say=die)
    half = read_results(tmp_path)
    assert (half["complete"], half["missing_episodes"], len(half["episodes"])) == (False, 2, 4)
    assert not is_finished(tmp_path)
    again, lines = brightness(), []
    evaluate_policy(population, again, card_of(population, again), OPTIONS, tmp_path, say=lines.append)
    assert len(again.frame_counts) == 2  # only the missing ones were walked
    assert "4/6 episodes were finished before" in lines[0]
    whole = read_results(tmp_path)
    assert is_finished(tmp_path)
    fresh = brightness()
    reference = evaluate_policy(
        population, fresh, card_of(population, fresh), OPTIONS, tmp_path / "b", say=lines.append
    )
    drop = {"policy_seconds"}
    for key, row in reference.episodes.items():
        assert {k: v for k, v in row.items() if k not in drop} == {
            k: v for k, v in whole["episodes"][key].items() if k not in drop
        }


def test_results_of_another_protocol_are_refused(population, brightness, tmp_path):
    policy = brightness()
    evaluate_policy(population, policy, card_of(population, policy), OPTIONS, tmp_path, say=str)
    other = card_of(population, RandomPolicy())
    with pytest.raises(ValueError, match=r"another protocol \(different: policy\)"):
        ResultFile(tmp_path, other, episode_ids=["0"])


def test_a_truncated_result_file_is_named(tmp_path):
    (tmp_path / "results.json").write_text('{"complete": tr')
    with pytest.raises(ValueError, match=r"results.json is no JSON"):
        read_results(tmp_path)


def test_chunks_are_joined_without_walking_again(population, brightness, tmp_path):
    for index in range(2):
        part = population.part(slice(3 * index, 3 * index + 3))
        policy = brightness()
        card = card_of(part, policy)
        evaluate_policy(part, policy, card, OPTIONS, tmp_path / f"chunk-{index}-of-2", say=str)
    policy = brightness()
    results = evaluate_policy(population, policy, card_of(population, policy), OPTIONS, tmp_path, say=str)
    assert results.complete
    assert not policy.frame_counts


def test_records_hold_measures_failure_class_costs_and_actions(population, batched):
    episodes = population.episodes
    (walk,) = run_batch(batched(1), ForwardPolicy(), episodes[:1])
    record = json.loads(json.dumps(episode_record(walk)))
    assert record["actions"].endswith("0")
    assert record["steps_taken"] == len(record["actions"])
    assert record["failure"] in ("success", "passed by", "stopped too early")
    assert {"success_1m", "right_object", "ndtw", "sdtw", "never_stopped", "tokens", "decisions"} <= set(record)


def test_floors_stand_beside_the_model_and_are_measured_once(population, tmp_path):
    lines = []
    floors = measure_floors(population, OPTIONS, tmp_path, say=lines.append)
    assert list(floors) == ["random", "forward", "any object", "oracle"]
    assert floors["oracle"]["summary"]["mean_success_1m"] == 1
    assert floors["oracle"]["summary"]["mean_right_object"] == 1
    assert floors["any object"]["summary"]["mean_never_stopped"] == 0
    assert len(lines) == 4
    measure_floors(population, OPTIONS, tmp_path, say=lines.append)
    assert len(lines) == 4


def test_the_tables_fit_one_hundred_columns(population, tmp_path):
    floors = {k: v["summary"] for k, v in measure_floors(population, OPTIONS, tmp_path, say=str).items()}
    summary = floors["any object"]
    text = text_of(
        navigation_table({"model": summary, **floors}, "toy"), breakdown_table(summary), *summary_lines(summary)
    )
    assert max(map(len, text.splitlines())) <= 100
    for word in ("SR 1 m %", "right object %", "oracle", "any object", "model", "never stopped %"):
        assert word in text


def test_random_walks_depend_on_key_and_seed_only(batched, population):
    episodes = population.episodes
    together = run_batch(batched(6), RandomPolicy(3), episodes, max_steps=30)
    alone = run_batch(batched(1), RandomPolicy(3), episodes[4:5], max_steps=30)
    assert together[4].actions == alone[0].actions
    assert together[4].actions != run_batch(batched(1), RandomPolicy(4), episodes[4:5], max_steps=30)[0].actions


def test_a_replayed_ground_truth_arrives(batched, population):
    plans = {e.episode_id: e.actions for e in population.episodes}
    walks = run_batch(batched(6), ReplayPolicy("oracle", plans), population.episodes)
    rows = {w.episode.episode_id: episode_record(w) for w in walks}
    assert summarise(rows)["mean_success_1m"] == 1
    assert summarise(rows)["mean_ndtw"] == pytest.approx(1)


def test_a_plan_that_is_missing_is_named(batched, population):
    with pytest.raises(ValueError, match="no plan for episode 0"):
        run_batch(batched(1), ReplayPolicy("oracle", {}), population.episodes[:1])


def test_values_are_found_by_path_also_as_text():
    content = {"a": {"b": "0.5", "c": None}}
    assert value_at(content, "a/b") == 0.5
    assert value_at(content, "a/c") is None
    assert value_at(content, "a/x/y") is None
