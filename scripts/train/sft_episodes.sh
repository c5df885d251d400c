#!/usr/bin/env bash
# Supervised fine-tuning on whole episodes: one record = instruction, then picture, answer, picture, answer ...
# Same environment as sft_8frames.sh; with GPUS_PER_NODE it runs under ZeRO-3 from MODEL on DATA_MIXTURE (type streaming).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
COMMON=(--version llama_3 --stage sft --save_total_limit 1 --lr_scheduler_type cosine --warmup_steps 0.05)
if [ -z "${GPUS_PER_NODE:-}" ]; then
    exec "${LAUNCH[@]}" "${COMMON[@]}" \
        --model_name_or_path "${MODEL:-embedded}" \
        --data_mixture "${DATA_MIXTURE:-embedded_streaming}" --data_root "${DATA_ROOT:-runs/demo/data}" \
        --tokenizer_mixture embedded_navigation+embedded_streaming+embedded_grounding \
        --output_dir "${OUTPUT:-runs/demo/models/streaming}" --grounding_questions 0.6 --model_max_length 1024 \
        --tokens_per_batch 384 --max_train_seconds 360 --save_seconds 60 --save_strategy no \
        --learning_rate 1e-3 --weight_decay 0.05 --adam_beta2 0.98 --logging_steps 20 --dataloader_num_workers 0 "$@"
fi
exec "${LAUNCH[@]}" "${COMMON[@]}" --deepspeed "$ROOT/scripts/zero3.json" --bf16 True --tf32 True \
    --model_name_or_path "${MODEL:?name the checkpoint to start from}" \
    --data_mixture "${DATA_MIXTURE:?name data sets of type streaming}" \
    --output_dir "${OUTPUT:-./checkpoints/streaming-sft}" --model_max_length 8192 --tokens_per_batch 16384 \
    --num_train_epochs 1 --learning_rate 2e-5 --weight_decay 0. --save_strategy steps --save_steps 100 \
    --logging_steps 1 --dataloader_num_workers 16 "$@"
