"""Settings of the next-frame loss are valid from birth and say what is wrong with those that are not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llava.model.autoregressive_reconstruction import PRESETS, ReconstructionConfig
from llava.model.autoregressive_reconstruction.attention import heads_for

DOCUMENTED = {"embedding_dim": 1152, "num_hist": 3, "loss_weight": 0.1, "num_heads": 8, "num_layers": 3}


def test_the_documented_keys_have_the_documented_defaults():
    config = ReconstructionConfig.read(DOCUMENTED)
    assert config == ReconstructionConfig()
    assert (config.use_frame_causal_mask, config.window_size, config.use_fast_slow_frames) == (True, None, False)
    assert (config.fast_stride, config.slow_stride, config.num_fast, config.num_slow) == (1, 4, 8, 8)
    assert config.merge_strategy == "concat"


def test_presets_differ_in_what_they_name_only():
    documented = ReconstructionConfig.read({"preset": "documented", "num_layers": 2})
    assert (documented.head, documented.target_norm, documented.predictor_dim) == ("direct", "none", "language")
    assert documented.num_layers == 2
    assert ReconstructionConfig.read({"preset": "default"}) == ReconstructionConfig.read(None)
    assert set(PRESETS) == {"default", "documented"}


def test_a_config_survives_a_file():
    config = ReconstructionConfig(site="both", condition_on_action="answer", embedding_dim=None, window_size=4)
    assert ReconstructionConfig.read(config.to_dict()) == config
    assert ReconstructionConfig.read(config) is config


@pytest.mark.parametrize(
    ("options", "windows"),
    [
        ({"num_hist": 3, "num_layers": 3}, (2, 2, 1)),
        ({"num_hist": 1, "num_layers": 2}, (1, 1)),
        ({"num_hist": 8, "num_layers": 3}, (4, 3, 3)),
        ({"num_hist": 8, "num_layers": 3, "window_size": 2}, (2, 2, 2)),
    ],
)
def test_the_windows_of_the_layers_reach_back_num_hist_frames(options, windows):
    assert ReconstructionConfig(**options).layer_windows == windows


def test_the_settings_need_no_torch():
    program = (
        "import sys; from llava.model.autoregressive_reconstruction import ReconstructionConfig; "
        "ReconstructionConfig(); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_heads_are_split_until_a_fast_kernel_takes_them():
    assert [heads_for(*sizes) for sizes in ((64, 4), (1152, 8), (2048, 8), (4096, 8), (8192, 8))] == [4, 8, 8, 16, 32]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_hists": 3}, "no option 'num_hists'; did you mean 'num_hist'"),
        ({"preset": "documentd"}, "did you mean 'documented'"),
        ({"loss_type": "huber"}, "loss_type is 'huber', expected one of"),
        ({"merge_strategy": "interleaved"}, "did you mean 'interleave'"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"window_size": 0}, "window_size is 0"),
        ({"loss_weight": -0.1}, "loss_weight is -0.1"),
        ({"loss_weight": float("nan")}, "loss_weight is nan"),
        ({"predictor_dim": "wide"}, "predictor_dim is 'wide'"),
        ({"predictor_dim": 0}, "predictor_dim is 0"),
        ({"condition_on_action": "answer"}, "expected site 'answer' or 'both'"),
        ({"use_fast_slow_frames": True, "site": "answer"}, "expected 'visual'"),
        ({"predictor_input": "hidden", "context": "none"}, "expected context 'language'"),
        ({"control": "current_frame"}, "else the target is the input"),
        ({"control": "frozen_predictor"}, "pulls at nothing; expected head 'direct'"),
        ({"geometry_dim": 1, "geometry_loss_type": "cosine"}, "of a single channel both leave nothing"),
        ({"geometry_dim": 1, "geometry_norm": "layer_norm"}, "of a single channel both leave nothing"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ReconstructionConfig.read(options)


def test_heads_that_do_not_divide_are_refused_with_the_nearest_number_that_does():
    with pytest.raises(ValueError, match="num_heads is 7, which does not divide the predictor's width 48; use 6"):
        heads_for(48, 7)
