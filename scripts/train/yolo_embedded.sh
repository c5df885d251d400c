#!/usr/bin/env bash
# A detector without downloads: a YOLO model from its YAML learns the embedded world's objects from true instance masks.
# Enters: nothing. Leaves: $OUTPUT/best.pt (for --detector yolo --weights), yolo.json with mAP50, recall by cell, settings.
# 4 minutes of training on one core (--minutes); DEVICE=0 takes a GPU. A quick check: --train 64 --val 32 --minutes 0.1
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
export PATH="$ROOT/.venv/bin:$PATH" PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "${LLAVA_PYTHON:-python}" -m playground.scene.train_yolo --out "${OUTPUT:-runs/scene/yolo}" \
    ${MODEL:+--model "$MODEL"} --device "${DEVICE:-cpu}" --minutes 4 "$@"
