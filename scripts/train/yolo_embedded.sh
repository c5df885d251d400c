#!/usr/bin/env bash
# A detector without downloads: a YOLO model from its YAML learns the embedded world's objects from true instance masks.
# Enters: nothing. Leaves: $OUTPUT/best.pt (for --detector yolo --weights), yolo.json with mAP50, settings, data.
# 10 minutes on a CPU (--minutes); DEVICE=0 takes a GPU. A quick check: --train 64 --val 32 --epochs 2
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
export PATH="$ROOT/.venv/bin:$PATH" PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "${LLAVA_PYTHON:-python}" -m playground.scene.train_yolo --out "${OUTPUT:-runs/scene/yolo}" \
    --model "${MODEL:-yolo11n-seg.yaml}" --device "${DEVICE:-cpu}" --pixels 64 --imgsz 128 \
    --train 1000 --val 300 --epochs 60 --minutes 10 --batch 16 "$@"
