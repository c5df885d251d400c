#!/usr/bin/env bash
# Align: what every format starts from. With GPUS_PER_NODE the projector alone learns, from captions and questions.
# An embedded model is new in every part, so all parts learn, from whole episodes: each picture answers two things, what
# to do next and where an object is. The rate stays up, because the next stage goes on from here.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
COMMON=(--version llama_3 --save_total_limit 1)
if [ -z "${GPUS_PER_NODE:-}" ]; then
    exec "${LAUNCH[@]}" "${COMMON[@]}" --stage sft --model_name_or_path "${MODEL:-embedded}" \
        --data_mixture "${DATA_MIXTURE:-embedded_streaming}" --data_root "${DATA_ROOT:-runs/demo/data}" \
        --tokenizer_mixture embedded_navigation+embedded_streaming+embedded_grounding \
        --output_dir "${OUTPUT:-runs/demo/models/align}" --model_max_length 1024 --tokens_per_batch 512 \
        --grounding_questions 1 --max_train_seconds 170 --save_seconds 60 --save_strategy no \
        --lr_scheduler_type constant_with_warmup --warmup_steps 0.05 --learning_rate 1e-3 --weight_decay 0.05 \
        --adam_beta2 0.98 --logging_steps 20 --dataloader_num_workers 0 "$@"
fi
exec "${LAUNCH[@]}" "${COMMON[@]}" --stage align --deepspeed "$ROOT/scripts/zero2.json" --bf16 True --tf32 True \
    --model_name_or_path "${MODEL:?name the language model or checkpoint to start from}" \
    --data_mixture "${DATA_MIXTURE:?name data sets with captions or questions}" \
    --output_dir "${OUTPUT:-./checkpoints/align}" --model_max_length 4096 --tokens_per_batch 16384 \
    --lr_scheduler_type cosine --warmup_steps 0.05 --num_train_epochs 1 --save_strategy steps --save_steps 100 \
    --logging_steps 1 --dataloader_num_workers 16 "$@"
