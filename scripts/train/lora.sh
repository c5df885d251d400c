#!/usr/bin/env bash
# LoRA: low-rank adapters in the language model, the projector as a whole, everything else as the base has it.
# Without GPUS_PER_NODE: one process on the embedded data, quick; MODEL=runs/demo/models/8frames adapts a trained model.
# With it: the LoRA settings of LLaVA-1.5. DoRA: --use_dora True. QLoRA: --bits 4 --deepspeed scripts/zero2.json.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
COMMON=(--lora_enable True --save_total_limit 1 --lr_scheduler_type cosine --warmup_steps 0.03 --weight_decay 0.)
if [ -z "${GPUS_PER_NODE:-}" ]; then
    exec "${LAUNCH[@]}" "${COMMON[@]}" --lora_r 16 --lora_alpha 32 \
        --model_name_or_path "${MODEL:-embedded}" --version llama_3 \
        --data_mixture "${DATA_MIXTURE:-embedded_navigation}" --data_root "${DATA_ROOT:-runs/demo/data}" \
        --tokenizer_mixture embedded_navigation+embedded_streaming+embedded_grounding \
        --output_dir "${OUTPUT:-runs/demo/models/lora}" --num_video_frames 8 --model_max_length 1024 \
        --tokens_per_batch 1024 --max_train_seconds 20 --save_strategy no --learning_rate 2e-3 \
        --logging_steps 20 --dataloader_num_workers 0 "$@"
fi
exec "${LAUNCH[@]}" "${COMMON[@]}" --lora_r 128 --lora_alpha 256 --deepspeed "$ROOT/scripts/zero3.json" --bf16 True --tf32 True \
    --model_name_or_path "${MODEL:?name the checkpoint to adapt}" \
    --data_mixture "${DATA_MIXTURE:?name data sets}" --output_dir "${OUTPUT:-./checkpoints/lora}" \
    --model_max_length 4096 --tokens_per_batch 16384 --num_train_epochs 1 --learning_rate 2e-4 --mm_projector_lr 2e-5 \
    --save_strategy steps --save_steps 100 --logging_steps 1 --dataloader_num_workers 16 "$@"
