#!/usr/bin/env bash
# Pretrain: projector and language model learn to read pictures, from captions, questions and interleaved records.
# Enters: what align.sh left (MODEL). Leaves: what sft.sh starts from. With GPUS_PER_NODE: steps of 1,024 samples under
# ZeRO-3, whatever the number of GPUS_PER_NODE and n_node. Without: one process on the embedded questions about pictures;
# an embedded model is new in every part, so its tower learns, too.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
COMMON=(--version llama_3 --stage pretrain --save_total_limit 1)
if [ -z "${GPUS_PER_NODE:-}" ]; then
    batch_of 32 32
    exec "${LAUNCH[@]}" "${COMMON[@]}" "${BATCH[@]}" --model_name_or_path "${MODEL:-embedded}" --tune_vision_tower True \
        --data_mixture "${DATA_MIXTURE:-embedded_grounding}" --data_root "${DATA_ROOT:-runs/demo/data}" \
        --tokenizer_mixture embedded_navigation+embedded_streaming+embedded_grounding \
        --output_dir "${OUTPUT:-runs/demo/models/pretrain}" --model_max_length 1024 --max_train_seconds 120 --save_seconds 60 \
        --save_strategy no --learning_rate 1e-3 --weight_decay 0.05 --adam_beta2 0.98 --logging_steps 20 \
        --dataloader_num_workers 0 "$@"
fi
batch_of 1024 16
exec "${LAUNCH[@]}" "${COMMON[@]}" "${BATCH[@]}" --deepspeed "$ROOT/scripts/zero3.json" --bf16 True --tf32 True \
    --model_name_or_path "${MODEL:?name the checkpoint that align.sh left}" \
    --data_mixture "${DATA_MIXTURE:?name data sets with captions, questions or interleaved records}" \
    --output_dir "${OUTPUT:-./checkpoints/pretrain}" --model_max_length 4096 --num_train_epochs 1 \
    --save_strategy steps --save_steps 100 --logging_steps 1 --dataloader_num_workers 16 "$@"
