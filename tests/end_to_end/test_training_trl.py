"""Preference and RL training by trl, from a model's folder to a model's folder."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

import llava
from tests.end_to_end.runs import ENVIRONMENT, ROOT
from tests.unit.model.autoregressive_reconstruction.surprise_toy import SIDE, make_model, make_tokenizer

pytest.importorskip("trl", reason="trl is not installed: pip install trl")
pytestmark = pytest.mark.slow

FLAGS = "--model_dtype float32 --use_cpu True --bf16 False --gradient_checkpointing False --logging_steps 1 --optim sgd"
BALL, BOX = "Walk to the red ball.", "Go to the blue box."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    model = make_model(make_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    model.save_pretrained(folder / "model")
    for index in (0, 1):
        pixels = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def flags(base, records, *more: str) -> list[str]:
    (base / "records.json").write_text(json.dumps(records))
    paths = ["--model_name_or_path", str(base / "model"), "--data_path", str(base / "records.json")]
    return [*paths, "--image_folder", str(base), *FLAGS.split(), *more]


def test_dpo_widens_the_margin_between_two_answers_and_leaves_a_model(base, tmp_path):
    from llava.train.dpo import main

    pairs = [
        {"prompt": "<image>\nWhat moves?", "images": ["0.png"], "chosen": BALL, "rejected": BOX},
        {"prompt": "<image>\n<image>\nWhat moves?", "images": ["0.png", "1.png"], "chosen": BOX, "rejected": BALL},
    ]
    steps = (
        "--max_steps 6 --per_device_train_batch_size 2 --learning_rate 0.05 --lr_scheduler_type constant --dpo_beta 0.5"
    )
    assert main(flags(base, pairs, *steps.split(), "--output_dir", str(tmp_path / "out"))) == 0
    (state,) = (tmp_path / "out").glob("checkpoint-6/trainer_state.json")
    rows = [row for row in json.loads(state.read_text())["log_history"] if "rewards/margins" in row]
    assert rows[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-5), "the reference is the model as it begins"
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert rows[-1]["rewards/margins"] > rows[1]["rewards/margins"] > 0
    assert rows[-1]["loss"] < rows[0]["loss"]
    before, after = llava.load(base / "model", device="cpu"), llava.load(tmp_path / "out", device="cpu")
    changed = [n for n, w in after.state_dict().items() if not torch.equal(w, before.state_dict()[n])]
    assert changed
    assert not any(name.startswith("vision_tower") for name in changed), "frozen unless --tune_vision_tower True"
    assert {row["part"] for row in json.loads((tmp_path / "out" / "trained_parts.json").read_text())} == {
        "language_model", "vision_tower", "mm_projector",
    }  # fmt: skip


def test_grpo_makes_paid_completions_likelier_and_unpaid_ones_less_likely(base, tmp_path):
    from llava.train.grpo import build_trainer
    from llava.train.trl_policy import Policy

    seen: list[tuple[list[int], float]] = []

    def even(completions, completion_ids, **columns):
        rewards = [float(ids[0] % 2 == 0) for ids in completion_ids]
        seen.extend(zip(completion_ids, rewards, strict=True))
        return rewards

    records = [{"prompt": "<image>\nWhat moves?", "images": ["0.png"], "answer": BALL}] * 2
    steps = "--max_steps 1 --per_device_train_batch_size 16 --num_generations 16 --max_completion_length 3"
    given = flags(base, records, *steps.split(), "--learning_rate", "0.1", "--output_dir", str(tmp_path / "out"))
    trainer = build_trainer(given, rewards=[even])
    row = trainer.train_dataset[0]
    messages = [{**row["prompt"][0], "content": [dict(p) for p in row["prompt"][0]["content"]]}]
    messages[0]["content"][0]["image"] = row["images"][0]
    prompt = trainer.processing_class.apply_chat_template(
        [messages], add_generation_prompt=True, tokenize=True, return_dict=True
    )

    def log_probability(model: Policy, completion: list[int]) -> float:
        ids = torch.tensor([[*prompt["input_ids"][0], *completion]])
        with torch.no_grad():
            logits = model.eval()(ids, pixel_values=prompt["pixel_values"]).logits[0]
        start = len(prompt["input_ids"][0])
        scores = logits.log_softmax(-1)[start - 1 : -1]
        return float(scores[range(len(completion)), completion].sum() / len(completion))

    first = Policy(llava.load(base / "model", device="cpu"))
    trainer.train()
    rewards = torch.tensor([reward for _, reward in seen])
    assert 0 < float(rewards.mean()) < 1, "some are paid, some are not"
    gain = torch.tensor([log_probability(trainer.model, c) - log_probability(first, c) for c, _ in seen])
    assert float(((rewards - rewards.mean()) * gain).sum()) > 0


SCRIPTS = {
    "dpo.sh": [{"prompt": "<image>\nWhat moves?", "images": ["0.png"], "chosen": BALL, "rejected": BOX}] * 2,
    "grpo.sh": [
        {"prompt": "<image>\nWhat moves?", "images": ["0.png"], "answer": "The next action is turn left 30 degree."}
    ]
    * 2,
}


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_goes_from_a_models_folder_to_a_models_folder(script, base, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps(SCRIPTS[script]))
    paths = {"MODEL": base / "model", "DATA": tmp_path / "data.json", "IMAGES": base, "OUTPUT": tmp_path / "out"}
    steps = "--max_steps 1 --max_completion_length 3" if script == "grpo.sh" else "--max_steps 1 --warmup_steps 0"
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "train" / script), *FLAGS.split(), *steps.split(), "--learning_rate", "0.1"],
        env=ENVIRONMENT | {name: str(path) for name, path in paths.items()},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    before, after = (llava.load(folder, device="cpu").state_dict() for folder in (base / "model", tmp_path / "out"))
    assert before.keys() == after.keys()
    if script == "dpo.sh":  # all completions of an untrained model are paid alike: GRPO has nothing to prefer
        assert any(not torch.equal(before[name], weight) for name, weight in after.items())


def test_a_kl_term_is_refused_in_words(base, tmp_path, capsys):
    from llava.train.grpo import main

    records = [{"prompt": "What moves?", "answer": BALL}]
    assert main(flags(base, records, "--beta", "0.1", "--output_dir", str(tmp_path))) == 2
    assert "expected 0" in capsys.readouterr().err


def test_a_flag_that_nobody_knows_is_an_error_with_the_nearest_one(base, tmp_path, capsys):
    from llava.train.dpo import main

    assert main(flags(base, [], "--learning_rat", "1", "--output_dir", str(tmp_path))) == 2
    assert "did you mean '--learning_rate'" in capsys.readouterr().err
