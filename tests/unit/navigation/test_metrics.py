"""The numbers of the navigation literature, rebuilt: equal to the originals, and sane where those are not."""

import itertools
import json
import math

import numpy as np
import pytest

from llava.navigation import metrics as m


def number(value):
    return float(value) if isinstance(value, str) else value


@pytest.fixture(scope="session")
def expected(golden):
    return json.loads((golden / "vln" / "golden.json").read_text())


def trace_of(case) -> m.EpisodeTrace:
    return m.EpisodeTrace(
        positions=np.array(case["positions"], dtype=np.float32).astype(float),
        distances=np.array([number(d) for d in case["geodesic_to_goal"]], dtype=float),
        stopped=case["stop_called_on_last"],
        collided=np.array(case["collided"], dtype=bool),
        reference=np.array(case["gt_locations"], dtype=float),
    )


def test_dtw_and_ndtw_equal_the_originals(expected):
    for case in expected["A_dtw"]:
        path, reference = np.array(case["path"]), np.array(case["reference"])
        assert m.exact_dtw(path, reference) == pytest.approx(case["dtw_exact"], abs=1e-6)
        assert m.ndtw(path, reference, threshold=case["threshold"]) == pytest.approx(case["ndtw_exact"], abs=1e-6)


def test_the_fastdtw_backend_reproduces_vln_ce_to_the_digit(expected):
    pytest.importorskip("fastdtw")
    for case in expected["A_dtw"][::8]:
        value = m.ndtw(case["path"], case["reference"], backend="fastdtw")
        assert value == pytest.approx(case["ndtw_fastdtw"], abs=1e-6)


def test_every_habitat_measure_is_reproduced(expected):
    checked = 0
    for case in expected["B_episodes"]:
        if case["error"]:
            continue
        ours = m.episode_metrics(trace_of(case), success_distance=case["success_distance"])
        for name, value in case["final"].items():
            if name == "collisions":
                value = value["count"]
            if name == "ndtw" or name == "sdtw":
                value = case["final_ndtw_exact"] * (1 if name == "ndtw" else case["final"]["success"])
            if name == "spl" and value == "nan":
                assert ours["success"] == 0
                assert ours["spl"] == 0
                continue
            assert ours[name] == pytest.approx(number(value), abs=1e-6, nan_ok=True), name
            checked += 1
    assert checked > 300


def test_ndtw_at_every_step_equals_the_original(expected):
    for case in expected["B_episodes"][:8]:
        positions = np.array(case["positions"], dtype=np.float32).astype(float)
        for step, value in enumerate(case["ndtw_per_step"]):
            ours = m.ndtw(m.drop_repeats(positions[: step + 1]), case["gt_locations"])
            assert ours == pytest.approx(value, abs=3e-3)  # the original used the approximate backend


def graph_distances(edges):
    nodes = sorted({n for a, b, _ in edges for n in (a, b)})
    index = {node: i for i, node in enumerate(nodes)}
    d = np.full((len(nodes), len(nodes)), np.inf)
    np.fill_diagonal(d, 0)
    for a, b, w in edges:
        d[index[a], index[b]] = d[index[b], index[a]] = w
    for k in range(len(nodes)):
        d = np.minimum(d, d[:, k : k + 1] + d[k : k + 1])
    return d, index


def test_graph_metrics_equal_the_originals(expected):
    for case in expected["C_graph_valan"]:
        d, index = graph_distances(case["edges"])
        walk, gold = [index[n] for n in case["predicted"]], [index[n] for n in case["golden"]]
        cost = d[np.ix_(walk, gold)]
        length = sum(d[a, b] for a, b in itertools.pairwise(walk))
        gold_length = sum(d[a, b] for a, b in itertools.pairwise(gold))
        threshold = case["success_threshold"]
        ndtw = math.exp(-m.dtw_cost(cost) / (len(gold) * threshold))
        assert ndtw == pytest.approx(case["ndtw"], abs=1e-6)
        assert ndtw * case["success"] == pytest.approx(case["sdtw"], abs=1e-6)
        assert m.coverage_length_score(cost, length, gold_length, threshold=threshold) == pytest.approx(
            case["cls"], abs=1e-6
        )


def test_aggregates_equal_the_originals_and_count_what_is_not_finite(expected, tmp_path):
    section = expected["G_aggregate"]
    for name, episodes in section["files"].items():
        numbers = {k: {n: number(v) for n, v in row.items()} for k, row in episodes.items()}
        (tmp_path / name).write_text(json.dumps(numbers))
    ours = m.aggregate_chunks(tmp_path, 3)
    for key, value in section["aggregated"].items():
        assert ours[key] == pytest.approx(value, abs=1e-6), key
    (tmp_path / "val_unseen_3-2.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"chunks \[2\] of 3 are missing"):
        m.aggregate_chunks(tmp_path, 3)
    partial = m.aggregate_chunks(tmp_path, 3, allow_missing=True)
    for key, value in section["aggregated_with_chunk_2_missing"].items():
        assert partial[key] == pytest.approx(value, abs=1e-6), key
    assert partial["missing_chunks"] == 1


def test_chunks_cover_every_episode_once_also_where_the_original_rule_fails(expected):
    failing = 0
    for case in expected["H_chunks"]:
        failing += "IndexError" in case["ranges"]
        slices = m.chunk_slices(case["n"], case["chunks"])
        assert [i for s in slices for i in range(case["n"])[s]] == list(range(case["n"]))
        assert len(slices) == case["chunks"]
    assert failing  # the ceil rule of the original leaves such chunks without an answer


def walk(distances, *, stopped=True, positions=None):
    if positions is None:
        positions = [[float(i), 0.0, 0.0] for i in range(len(distances))]
    return m.EpisodeTrace(positions=np.array(positions), distances=np.array(distances, dtype=float), stopped=stopped)


def test_exactly_three_metres_is_a_failure():
    assert m.episode_metrics(walk([5.0, 3.0]))["success"] == 0
    assert m.episode_metrics(walk([5.0, 2.999999]))["success"] == 1


def test_standing_at_the_goal_without_a_stop_is_a_failure():
    result = m.episode_metrics(walk([5.0, 0.1], stopped=False))
    assert (result["success"], result["oracle_success"], result["spl"]) == (0, 1, 0)


def test_a_start_on_the_goal_divides_by_nothing():
    still = walk([0.0, 0.0], positions=[[0.0, 0, 0], [0.0, 0, 0]])
    assert m.episode_metrics(still)["spl"] == 1
    assert m.episode_metrics(still)["softspl"] == 1


def test_an_unreachable_goal_gives_a_failure_with_spl_zero():
    result = m.episode_metrics(walk([math.inf, math.inf]))
    assert result["spl"] == 0
    assert math.isinf(result["distance_to_goal"])
    summary = m.aggregate({"a": result, "b": m.episode_metrics(walk([2.0, 1.0]))})
    assert summary["invalid_distances"] == 1
    assert summary["mean_distance_to_goal"] == 1.0
    assert summary["invalid_spls"] == 0


def test_several_radii_are_reported_side_by_side():
    result = m.episode_metrics(walk([5.0, 2.0]), more_radii=(1.0, 0.5))
    assert result["success"] == 1
    assert result["success_1m"] == 0
    assert result["oracle_success_0.5m"] == 0


def test_missing_reference_leaves_ndtw_open():
    assert math.isnan(m.episode_metrics(walk([5.0, 2.0]))["ndtw"])


def test_a_partial_aggregate_is_refused():
    row = m.episode_metrics(walk([2.0, 1.0]))
    with pytest.raises(ValueError, match="1 expected episodes have no result"):
        m.aggregate({"a": row}, expected=["a", "b"])
    with pytest.raises(ValueError, match="no episode"):
        m.aggregate({})


def test_unknown_dtw_backend_suggests_the_nearest():
    with pytest.raises(KeyError, match="did you mean 'fastdtw'"):
        m.ndtw([[0.0]], [[0.0]], backend="fast_dtw")


@pytest.mark.parametrize(
    ("distances", "stopped", "expected_class"),
    [
        ([9, 2], True, "success"),
        ([9, 2, 5], True, "passed by"),
        ([9, 2], False, "passed by"),
        ([9, 8], True, "stopped too early"),
        ([9, 8], False, "never arrived"),
    ],
)
def test_failure_classes(distances, stopped, expected_class):
    assert m.failure_class(walk(distances, stopped=stopped)) == expected_class


def test_an_agent_that_turns_on_the_spot_is_stuck():
    trace = walk([9] * 40, stopped=False, positions=[[0.0, 0, 0]] * 40)
    assert m.failure_class(trace) == "stuck"


def test_right_object_asks_for_the_nearest_object_and_for_nearness():
    objects = np.array([[0.0, 0, 0], [4.0, 0, 0]])
    assert m.right_object(np.array([1.0, 0, 0]), objects, 0) == {"nearest_object": 1, "right_object": 1}
    assert m.right_object(np.array([-3.0, 0, 0]), objects, 0) == {"nearest_object": 1, "right_object": 0}
    assert m.right_object(np.array([3.5, 0, 0]), objects, 0) == {"nearest_object": 0, "right_object": 0}


def test_wilson_interval_of_textbook_values():
    low, high = m.wilson_interval(8, 10)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert m.wilson_interval(0, 10)[0] == 0
    assert m.wilson_interval(10, 10)[1] == pytest.approx(1)


def test_bootstrap_is_repeatable_and_brackets_the_mean():
    values = np.linspace(0, 1, 50)
    low, high = m.bootstrap_interval(values)
    assert low < 0.5 < high
    assert (low, high) == m.bootstrap_interval(values)


def test_success_by_length_counts_each_episode_once():
    results = {str(i): {"shortest_path": float(i), "success": float(i < 6)} for i in range(1, 12)}
    table = m.success_by_length(results)
    assert sum(row["n"] for row in table) == 11
    assert table[0]["rate"] == 1.0
    assert table[-1]["rate"] == 0.0


def test_mcnemar_uses_only_episodes_on_which_the_two_differ():
    assert m.mcnemar_p_value(0, 0) == 1
    assert m.mcnemar_p_value(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)


def test_paired_comparison_refuses_different_episodes():
    a = {str(i): {"success": 0.0} for i in range(10)}
    b = {str(i): {"success": 1.0} for i in range(10)}
    row = m.paired_comparison(a, b)
    assert row["difference"] == 1
    assert row["only_second"] == 10
    assert row["p_value"] < 0.01
    with pytest.raises(ValueError, match="9 in common"):
        m.paired_comparison(a, {k: v for k, v in b.items() if k != "3"})
    assert m.paired_comparison(a, {"3": {"success": 1.0}}, allow_subset=True)["n"] == 1
