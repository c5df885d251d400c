#!/usr/bin/env bash
# Supervised fine-tuning on single decisions from 8 frames: one record = history, instruction, next action.
# Without GPUS_PER_NODE: one process, the embedded model on the embedded data. With it: the published job under ZeRO-3.
#   MODEL=... DATA_MIXTURE=r2r+rxr+... n_node=1 GPUS_PER_NODE=8 MASTER_ADDR=... MASTER_PORT=... CURRENT_RANK=0 bash sft_8frames.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if [ -z "${GPUS_PER_NODE:-}" ]; then
    exec "${LAUNCH[@]}" \
        --model_name_or_path "${MODEL:-embedded}" --version llama_3 --stage sft \
        --data_mixture "${DATA_MIXTURE:-embedded_navigation}" --data_root "${DATA_ROOT:-runs/demo/data}" \
        --tokenizer_mixture embedded_navigation+embedded_streaming+embedded_grounding \
        --output_dir "${OUTPUT:-runs/demo/models/8frames}" --num_video_frames 8 --model_max_length 1024 \
        --grounding_questions 3 --tokens_per_batch 1024 --max_train_seconds 360 --save_seconds 60 --save_strategy no \
        --save_total_limit 1 --learning_rate 1e-3 --weight_decay 0.05 --adam_beta2 0.98 --lr_scheduler_type cosine --warmup_steps 0.05 \
        --logging_steps 20 --dataloader_num_workers 0 "$@"
fi
exec "${LAUNCH[@]}" --longvila_sampler True --deepspeed "$ROOT/scripts/zero3.json" \
    --model_name_or_path "${MODEL:-a8cheng/navila-siglip-llama3-8b-v1.5-pretrain}" --version llama_3 --seed 10 \
    --data_mixture "${DATA_MIXTURE:-r2r+rxr+envdrop+human+scanqa+video_chatgpt+sharegpt_video+sharegpt4v_sft}" \
    --vision_tower google/siglip-so400m-patch14-384 --mm_vision_select_feature cls_patch --mm_projector mlp_downsample \
    --num_video_frames 8 --tune_vision_tower True --tune_mm_projector True --tune_language_model True \
    --mm_vision_select_layer -2 --mm_use_im_start_end False --mm_use_im_patch_token False \
    --image_aspect_ratio resize --bf16 True --output_dir "${OUTPUT:-./checkpoints/navila-8b-8f-sft}" \
    --num_train_epochs 1 --per_device_train_batch_size 10 --gradient_accumulation_steps 2 --do_eval False \
    --save_strategy steps --save_steps 100 --fps 0.0 --save_total_limit 1 --learning_rate 1e-4 --weight_decay 0. \
    --warmup_ratio 0.03 --lr_scheduler_type cosine --logging_steps 1 --tf32 True --model_max_length 4096 \
    --gradient_checkpointing True --dataloader_num_workers 16 --lazy_preprocess True "$@"
