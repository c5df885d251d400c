#!/usr/bin/env bash
# Background/object split in two stages: the background path and the object path by themselves, then the language model on both.
# Enters: MODEL (a checkpoint; "embedded" begins from nothing, and then all parts learn), data with object masks beside the
# pictures (vila-world write --object-masks, scripts/make_object_masks.py) or at OBJECT_MASKS. Leaves: $OUTPUT/both, and
# $OUTPUT/background and $OUTPUT/objects on the way. METHOD=lora: adapters instead of whole parts in the last stage.
# SPLIT_CONFIG: keys of the split as JSON, or a YAML file; prefusion_layers 0 (the default) leaves pre-fusion out.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
MODEL="${MODEL:-embedded}" OUTPUT="${OUTPUT:-runs/demo/models/split}" CONFIG="${SPLIT_CONFIG:-{\"shared_projectors\": false\}}"
COMMON=(--scene_split True --version llama_3 --save_total_limit 1 --lr_scheduler_type cosine --warmup_steps 0.05)
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
PATHS=(--stage align) && [ "$MODEL" != embedded ] || PATHS=(--stage sft)
BOTH=(--stage sft) && [ "${METHOD:-full}" = full ] || BOTH=(--lora_enable True --learning_rate 2e-4)
"${RUN[@]}" "${COMMON[@]}" "${PATHS[@]}" --scene_split_config "$CONFIG" --scene_split_groups background --tune_object_projector False \
    --model_name_or_path "$MODEL" --data_mixture "${BACKGROUND_MIXTURE:-embedded_navigation}" --output_dir "$OUTPUT/background" "$@"
"${RUN[@]}" "${COMMON[@]}" "${PATHS[@]}" --scene_split_groups objects --tune_background_projector False \
    --model_name_or_path "$OUTPUT/background" --data_mixture "${OBJECT_MIXTURE:-embedded_grounding}" --output_dir "$OUTPUT/objects" "$@"
"${RUN[@]}" "${COMMON[@]}" "${BOTH[@]}" \
    --model_name_or_path "$OUTPUT/objects" --data_mixture "${DATA_MIXTURE:-embedded_navigation}" --output_dir "$OUTPUT/both" "$@"
