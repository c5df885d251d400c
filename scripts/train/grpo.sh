#!/usr/bin/env bash
# Group-relative policy optimisation by trl (pip install trl): a trained navigation model and decisions in, a model out.
#   MODEL=CHECKPOINT DATA=annotations.json IMAGES=FOLDER OUTPUT=FOLDER bash scripts/train/grpo.sh
# A record is a NaVILA decision: {"q": instruction, "a": the oracle's sentence, "frames": [all frames so far]}.
# Paid are the oracle's action (1; the right kind 0.5) and a sentence of the action format (0.2).
# Without GPUS_PER_NODE: one process. With it: that many under ZeRO-2, so that answers are sampled from whole weights.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
LAUNCH=("${LAUNCH[@]/%llava.train.train/llava.train.grpo}")
LAUNCH=("${LAUNCH[@]/%train_mem.py/grpo.py}")
COMMON=(--model_name_or_path "${MODEL:?name a trained model}" --data_path "${DATA:?name a file of decisions}"
    --image_folder "${IMAGES:-.}" --output_dir "${OUTPUT:-./checkpoints/grpo}" --reward_weights 1.0 0.2
    --num_generations 8 --max_completion_length 32 --temperature 1.0 --learning_rate 1e-6 --num_train_epochs 1
    --save_total_limit 1)
if [ -z "${GPUS_PER_NODE:-}" ]; then
    exec "${LAUNCH[@]}" "${COMMON[@]}" --per_device_train_batch_size 8 --logging_steps 5 "$@"
fi
exec "${LAUNCH[@]}" "${COMMON[@]}" --deepspeed "$ROOT/scripts/zero2.json" --bf16 True --gradient_checkpointing True \
    --per_device_train_batch_size 8 --gradient_accumulation_steps 4 --logging_steps 1 "$@"
