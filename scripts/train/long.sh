#!/usr/bin/env bash
# Fine-tuning on sequences too long for one GPU (long videos, whole episodes): the processes of a machine share each sequence.
# Same environment as sft_8frames.sh. Without GPUS_PER_NODE: two CPU processes on the embedded data; with it: ZeRO-3 from MODEL.
# Fewer attention heads than processes: --seq_parallel_ring_size 2 gives that factor to the ring. Smaller groups: --seq_parallel_size N.
set -euo pipefail
ON_GPUS="${GPUS_PER_NODE:-}"
GPUS_PER_NODE="${GPUS_PER_NODE:-2}"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
LAUNCH=("${LAUNCH[@]::${#LAUNCH[@]}-1}" "$ROOT/llava/train/train_hybrid.py")
COMMON=(--version llama_3 --stage sft --save_total_limit 1 --lr_scheduler_type cosine --warmup_steps 0.03)
if [ -z "$ON_GPUS" ]; then
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    exec "${LAUNCH[@]}" "${COMMON[@]}" --model_name_or_path "${MODEL:-embedded}" \
        --data_mixture "${DATA_MIXTURE:-embedded_streaming}" --data_root "${DATA_ROOT:-runs/demo/data}" \
        --tokenizer_mixture embedded_navigation+embedded_streaming+embedded_grounding \
        --output_dir "${OUTPUT:-runs/demo/models/long}" --model_max_length 2048 --tokens_per_batch 2048 \
        --max_train_seconds 60 --save_strategy no --learning_rate 1e-3 --logging_steps 5 --dataloader_num_workers 0 "$@"
fi
exec "${LAUNCH[@]}" "${COMMON[@]}" --deepspeed "$ROOT/scripts/zero3.json" --bf16 True --tf32 True \
    --model_name_or_path "${MODEL:?name the checkpoint to start from}" --data_mixture "${DATA_MIXTURE:?name data sets}" \
    --output_dir "${OUTPUT:-./checkpoints/long-sft}" --num_video_frames 256 --model_max_length 65536 \
    --per_device_train_batch_size 1 --num_train_epochs 1 --learning_rate 2e-5 --weight_decay 0. \
    --save_strategy steps --save_steps 100 --logging_steps 1 --dataloader_num_workers 8 "$@"
