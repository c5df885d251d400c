#!/usr/bin/env bash
# Background/object split step by step: untuned, projector, last LAYERS layers of the language model, all. Each step is a
# checkpoint of its own to be evaluated: $OUTPUT/1_untuned, 2_projector, 3_last_layers, 4_all (METHOD=lora: 4_lora).
# Same environment as scene_split_two_stage.sh; MODEL "embedded" begins from nothing and has no untuned step.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
MODEL="${MODEL:-embedded}" OUTPUT="${OUTPUT:-runs/demo/models/split_progressive}" CONFIG="${SPLIT_CONFIG:-{\}}"
COMMON=(--scene_split True --version llama_3 --save_total_limit 1 --lr_scheduler_type cosine --warmup_steps 0.05
    --data_mixture "${DATA_MIXTURE:-embedded_navigation}")
[ -z "${OBJECT_MASKS:-}" ] || COMMON+=(--object_masks "$OBJECT_MASKS")
[ "$MODEL" != embedded ] || COMMON+=(--learning_rate 1e-3) # from nothing, as the other scripts
if [ -z "${GPUS_PER_NODE:-}" ]; then
    RUN=("${LAUNCH[@]}" --data_root "${DATA_ROOT:-runs/demo/data}" --model_max_length 1024
        --tokenizer_mixture embedded_navigation+embedded_streaming+embedded_grounding --tokens_per_batch 1024
        --max_train_seconds 120 --save_seconds 60 --save_strategy no --logging_steps 20 --dataloader_num_workers 0)
else
    RUN=("${LAUNCH[@]}" --deepspeed "$ROOT/scripts/zero2.json" --bf16 True --tf32 True --model_max_length 4096 --tokens_per_batch 16384
        --num_train_epochs 1 --save_strategy steps --save_steps 100 --logging_steps 1 --dataloader_num_workers 16)
fi
FIRST=(--model_name_or_path embedded --scene_split_config "$CONFIG")
if [ "$MODEL" != embedded ]; then
    [ -d "$OUTPUT/1_untuned" ] || "$PYTHON" -m llava.model.scene_split --model "$MODEL" --out "$OUTPUT/1_untuned" --config "$CONFIG"
    FIRST=(--model_name_or_path "$OUTPUT/1_untuned")
fi
LAST=(--stage sft --output_dir "$OUTPUT/4_all")
[ "${METHOD:-full}" = full ] || LAST=(--lora_enable True --learning_rate 2e-4 --output_dir "$OUTPUT/4_lora")
"${RUN[@]}" "${COMMON[@]}" --stage align "${FIRST[@]}" --output_dir "$OUTPUT/2_projector" "$@"
"${RUN[@]}" "${COMMON[@]}" --stage pretrain --tune_last_layers "${LAYERS:-2}" --model_name_or_path "$OUTPUT/2_projector" \
    --output_dir "$OUTPUT/3_last_layers" "$@"
"${RUN[@]}" "${COMMON[@]}" "${LAST[@]}" --model_name_or_path "$OUTPUT/3_last_layers" "$@"
