#!/usr/bin/env bash
# sft_8frames.sh that also predicts the features of the next frame while it trains; the model that comes out is as usual.
# Same environment and flags. AUTOREGRESSIVE_CONFIG: keys of the loss as JSON, or a YAML file (README, "Next-frame loss").
# DEPTH=True also predicts the depth of the next frame; the data must hold it (vila-world write --depth).
# SCRIPT=sft_episodes.sh does the same for whole episodes.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export OUTPUT="${OUTPUT:-runs/demo/models/8frames_autoregressive}"
exec bash "$HERE/${SCRIPT:-sft_8frames.sh}" --enable_autoregressive True \
    --autoregressive_depth "${DEPTH:-False}" --autoregressive_config "${AUTOREGRESSIVE_CONFIG:-{\}}" "$@"
