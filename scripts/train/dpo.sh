#!/usr/bin/env bash
# Direct preference optimisation by trl (pip install trl): a trained model and pairs of answers in, a model out.
#   MODEL=CHECKPOINT DATA=pairs.json IMAGES=FOLDER OUTPUT=FOLDER bash scripts/train/dpo.sh
# A record: {"prompt": "<image>\nWhat now?", "images": ["a.png"], "chosen": "...", "rejected": "..."}.
# Without GPUS_PER_NODE: one process. With it: that many under ZeRO-3; the frozen reference is a second copy of the model.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
LAUNCH=("${LAUNCH[@]/%llava.train.train/llava.train.dpo}")
LAUNCH=("${LAUNCH[@]/%train_mem.py/dpo.py}")
COMMON=(--model_name_or_path "${MODEL:?name a trained model}" --data_path "${DATA:?name a file of pairs}"
    --image_folder "${IMAGES:-.}" --output_dir "${OUTPUT:-./checkpoints/dpo}" --beta 0.1 --learning_rate 5e-7
    --lr_scheduler_type cosine --warmup_steps 0.03 --num_train_epochs 1 --save_total_limit 1)
if [ -z "${GPUS_PER_NODE:-}" ]; then
    exec "${LAUNCH[@]}" "${COMMON[@]}" --per_device_train_batch_size 1 --gradient_accumulation_steps 8 \
        --logging_steps 5 "$@"
fi
exec "${LAUNCH[@]}" "${COMMON[@]}" --deepspeed "$ROOT/scripts/zero3.json" --bf16 True --gradient_checkpointing True \
    --per_device_train_batch_size 1 --gradient_accumulation_steps 8 --logging_steps 1 "$@"
