#!/usr/bin/env bash
# sft_8frames.sh that also predicts the features of the next frame while it trains; the model that comes out is as usual.
# Same environment and flags. AUTOREGRESSIVE_CONFIG: keys of the loss as JSON, or a YAML file (README, "Next-frame loss").
# SCRIPT=sft_episodes.sh does the same for whole episodes.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export OUTPUT="${OUTPUT:-runs/demo/models/8frames_autoregressive}"
exec bash "$HERE/${SCRIPT:-sft_8frames.sh}" --enable_autoregressive True \
    --autoregressive_config "${AUTOREGRESSIVE_CONFIG:-{\}}" "$@"
