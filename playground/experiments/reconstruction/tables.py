"""Results as tables for the terminal: differences to the baseline in points, with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from playground.demo.plan import FORMATS
from playground.experiments.common import empty_table
from playground.experiments.reconstruction.collect import MEASURES, MOTIONS, RATES, Comparison, Results
from playground.experiments.statistics import Paired

BUDGETS = {"steps": "equal steps and decisions", "cost": "equal computing time"}
WALKS = ("success_1m", "success", "right_object", "spl", "distance_to_goal", "cross_entropy")
PROBES = ("next_action", "distance_error_m")
FIGURES = {
    "autoregressive_skill": "skill",
    **{f"autoregressive_skill_{motion}": motion for motion in MOTIONS},
    "autoregressive_ratio": "loss ratio",
    "gradient_ratio_language_model": "grad. LM",
    "gradient_ratio_vision_tower": "grad. tower",
    "gradient_cosine_language_model": "cos LM",
}
TITLES = {form.name: form.title for form in FORMATS}


def number(measure: str, value: float) -> str:
    """Rates in points, metres and nats as they are."""
    return f"{100 * value:.1f}" if measure in RATES else f"{value:.3f}"


def difference(measure: str, found: Paired) -> str:
    """`+1.2 [-0.8, +3.1]`"""
    digits, factor = (1, 100) if measure in RATES else (3, 1)
    middle, low, high = (f"{factor * value:+.{digits}f}" for value in (found.difference, found.low, found.high))
    return f"{middle} [{low}, {high}]"


def tables(results: Results) -> Iterator[Table]:
    """All that has rows, in reading order."""
    for form in results.setting.arms:
        for budget, words in BUDGETS.items():
            rows = results.of(form, budget)
            if rows:
                yield difference_table(rows, f"{TITLES[form]}, {words}: difference to the baseline", WALKS)
                yield sureness_table(rows, f"{TITLES[form]}, {words}: SR 1 m, how sure")
                yield difference_table(rows, f"{TITLES[form]}, {words}: linear probes, last layer", PROBES)
        with_loss = [row for row in results.comparisons if row.form == form and not row.arm.is_baseline]
        if with_loss:
            yield figure_table(with_loss, f"{TITLES[form]}: the loss itself, end of training, mean over seeds")


def difference_table(rows: list[Comparison], title: str, measures: tuple[str, ...]) -> Table:
    """Baselines as they are, every other arm as its difference."""
    table = empty_table(title, ["arm", *(MEASURES[m] for m in measures)])
    for row in rows:
        if row.arm.is_baseline:
            cells = [number(m, row.measures[m].arm) if m in row.measures else "-" for m in measures]
        else:
            found = [difference(m, row.measures[m]) if m in row.measures else "-" for m in measures]
            cells = [cell.replace(" ", "\n", 1) for cell in found]  # two lines: seven columns must fit
        table.add_row(row.title, *cells, style="bold" if row.arm.is_baseline else "")
    return table


def sureness_table(rows: list[Comparison], title: str) -> Table:
    """Differences per seed, discordant pairs, what was spent."""
    heads = ["arm", "per seed", "only base / arm", "p (McNemar)", "verdict at -1", "steps", "s a step"]
    table = empty_table(title, heads)
    for row in rows:
        found = row.measures.get("success_1m")
        costs = [record.cost for record in row.records.values() if record.cost]
        steps = "/".join(dict.fromkeys(f"{record.training['step']}" for record in row.records.values()))
        per_step = f"{sum(c.cpu_per_step for c in costs) / len(costs):.3f}" if costs else "-"
        if found is None or row.arm.is_baseline:
            cells = ["-", "-", "-", "-"]
        else:
            each = "  ".join(f"{100 * value:+.1f}" for value in found.per_seed)
            counts = "-" if found.p_value is None else f"{found.only_baseline} / {found.only_arm}"
            cells = [each, counts, "-" if found.p_value is None else f"{found.p_value:.3g}", row.verdict]
        table.add_row(row.title, *cells, steps, per_step)
    return table


def figure_table(rows: list[Comparison], title: str) -> Table:
    """Skill, also by what the robot did, and how strongly the loss pulls."""
    table = empty_table(title, ["arm", *FIGURES.values()])
    for row in rows:
        values = [row.mean_of(key) for key in FIGURES]
        table.add_row(row.title, *("-" if value is None else f"{value:.3f}" for value in values))
    return table
