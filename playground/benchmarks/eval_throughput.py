"""Navigation evaluation: episodes in one batch against one at a time, same episodes, same model, same actions.

What: decisions per second and seconds of a whole evaluation (simulator included), for both prompt formats.
How ours differs: all running episodes decide in one left-padded batch; pictures are encoded once and in one pass;
    `streaming` keeps keys and values from decision to decision.
Goal: equal actions, and at least 3 times as fast as one episode at a time where the work per decision is small
    (`streaming`); `navila` reads its whole prompt anew at every decision and is bound by arithmetic.

    python playground/benchmarks/eval_throughput.py [--episodes 32] [--max-steps 60] [--checkpoint DIR] [--threads 1]

Without a checkpoint the demo's model with random weights walks; its sentences are cut at 10 tokens, the length of a
trained one. Writes playground/benchmarks/results/eval_throughput_cpu.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import llava
from llava.conversation import get_template
from llava.eval.make_policy import make_policy
from llava.eval.navigation_loop import Walk, run_episodes
from llava.eval.navigation_task import NavigationOptions
from llava.eval.policies import Policy
from llava.eval.populations import POPULATIONS, Population
from llava.model.builder import build_model
from llava.navigation.prompt import NavilaFormat, StreamingFormat
from llava.train.model_setup import EMBEDDED_MODELS
from llava.utils.tokenizer import train_tokenizer

RESULT = Path(__file__).parent / "results" / "eval_throughput_cpu.json"
SENTENCE_TOKENS = 10
FORMATS = (NavilaFormat(), StreamingFormat())


def random_model(prompt: NavilaFormat | StreamingFormat, population: Population) -> Any:
    """The demo's model before training."""
    sentences = [episode.instruction for episode in population.episodes]
    sentences += [NavilaFormat().question("go"), "↑ ↑↑ ↑↑↑ ← ←← ←←← → →→ →→→ STOP", "system user assistant"] * 2
    sentences += [StreamingFormat().opening("go")[0].text or "", get_template("llama_3").system] * 2
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(sentences, 1024, folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    parts = EMBEDDED_MODELS["tiny"].config_parts(vocab_size=len(tokenizer), context=4096, ids=ids)
    torch.manual_seed(0)
    settings = {**parts, "version": "llama_3", "navigation_prompt": prompt.to_config()}
    return build_model(settings, tokenizer=tokenizer).eval()


def measure(
    population: Population, policy: Policy, batch_size: int, max_steps: int
) -> tuple[dict[str, float], list[Walk]]:
    """Seconds of the whole evaluation and of the policy in it, and what was walked."""
    begin = time.perf_counter()
    batches = run_episodes(
        population.make_lanes, policy, population.episodes, batch_size=batch_size, max_steps=max_steps
    )
    walks = [walk for batch in batches for walk in batch]
    seconds = time.perf_counter() - begin
    decisions = sum(len(walk.decisions) for walk in walks)
    policy_seconds = sum(walk.seconds for walk in walks)
    return {
        "seconds": seconds,
        "policy_seconds": policy_seconds,
        "decisions": decisions,
        "decisions_per_second": decisions / seconds,
        "ms_per_decision": 1000 * policy_seconds / decisions,
        "tokens_per_decision": sum(d.tokens for walk in walks for d in walk.decisions) / decisions,
    }, walks


def compare(model: Any, population: Population, options: argparse.Namespace) -> dict[str, Any]:
    sizes = {"one at a time": 1, "batched": options.episodes}
    rows: dict[str, Any] = {}
    actions = {}
    for name, size in sizes.items():
        policy = make_policy(model, max_new_tokens=None if options.checkpoint else _longest(model))
        rows[name], walks = measure(population, policy, size, options.max_steps)
        actions[name] = [walk.actions for walk in walks]
    same = sum(a == b for a, b in zip(*actions.values(), strict=True))
    rows["times as fast"] = rows["one at a time"]["seconds"] / rows["batched"]["seconds"]
    rows["episodes with equal actions"] = f"{same} of {options.episodes}"
    return rows


def _longest(model: Any) -> int | None:
    return SENTENCE_TOKENS if model.config.navigation_prompt["format"] == "navila" else None


def facts(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.processor() or platform.machine()}, {options.threads} thread(s)",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "episodes": options.episodes,
        "max_steps": options.max_steps,
        "weights": options.checkpoint or "the demo's model, random",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--max-steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint", action="append", help="measure these instead of random models")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    task = NavigationOptions(episodes=options.episodes)
    population = POPULATIONS["embedded"](task, None, None)
    if options.checkpoint:
        models = {path: llava.load(path) for path in options.checkpoint}
    else:
        models = {prompt.name: random_model(prompt, population) for prompt in FORMATS}
    content = facts(options) | {name: compare(model, population, options) for name, model in models.items()}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content, indent=1) + "\n")
    sys.stdout.write(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
