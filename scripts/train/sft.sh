#!/usr/bin/env bash
# Supervised fine-tuning of all parts on any mixture: questions, dialogues, pictures, videos, decisions.
# Enters: what pretrain.sh left (MODEL). Leaves: a model that does the tasks of DATA_MIXTURE. With GPUS_PER_NODE: steps of
# 2,048 samples under ZeRO-3, whatever the number of GPUS_PER_NODE and n_node. Without: one process on embedded questions
# and decisions. Navigation alone, from 8 frames: sft_8frames.sh; whole episodes: sft_episodes.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
COMMON=(--version llama_3 --stage sft --save_total_limit 1)
if [ -z "${GPUS_PER_NODE:-}" ]; then
    batch_of 16 16
    exec "${LAUNCH[@]}" "${COMMON[@]}" "${BATCH[@]}" --model_name_or_path "${MODEL:-embedded}" \
        --data_mixture "${DATA_MIXTURE:-embedded_grounding+embedded_navigation}" --data_root "${DATA_ROOT:-runs/demo/data}" \
        --tokenizer_mixture embedded_navigation+embedded_streaming+embedded_grounding \
        --output_dir "${OUTPUT:-runs/demo/models/sft}" --num_video_frames 8 --model_max_length 1024 --max_train_seconds 120 \
        --save_seconds 60 --save_strategy no --learning_rate 1e-3 --weight_decay 0.05 --adam_beta2 0.98 --logging_steps 20 \
        --dataloader_num_workers 0 "$@"
fi
batch_of 2048 16
exec "${LAUNCH[@]}" "${COMMON[@]}" "${BATCH[@]}" --deepspeed "$ROOT/scripts/zero3.json" --bf16 True --tf32 True \
    --model_name_or_path "${MODEL:?name the checkpoint that pretrain.sh left}" \
    --data_mixture "${DATA_MIXTURE:?name data sets}" --output_dir "${OUTPUT:-./checkpoints/sft}" \
    --model_max_length 4096 --num_train_epochs 1 --save_strategy steps --save_steps 100 --logging_steps 1 \
    --dataloader_num_workers 16 "$@"
