"""The command line: published spellings work, unknown ones are corrected, useless ones are answered."""

from __future__ import annotations

import logging

import pytest

from llava.train.parse import parse_args

OUT = ["--output_dir", "out", "--report_to", "none"]
PUBLISHED = (
    "--longvila_sampler True --model_name_or_path a/b --version llama_3 --seed 10 --data_mixture r2r+rxr "
    "--vision_tower a/tower --mm_projector mlp_downsample --mm_vision_select_feature cls_patch "
    "--num_video_frames 8 --tune_vision_tower True --tune_mm_projector True --tune_language_model True "
    "--mm_vision_select_layer -2 --mm_use_im_start_end False --mm_use_im_patch_token False --image_aspect_ratio resize "
    "--output_dir out --num_train_epochs 1 --per_device_train_batch_size 10 --gradient_accumulation_steps 2 "
    "--do_eval False --save_strategy steps --save_steps 100 --fps 0.0 --save_total_limit 1 --learning_rate 1e-4 "
    "--weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine --logging_steps 1 --tf32 True "
    "--model_max_length 4096 --gradient_checkpointing True --dataloader_num_workers 16 --lazy_preprocess True "
    "--evaluation_strategy no --report_to none"
)


def test_every_published_flag_is_accepted_and_reaches_its_place():
    args = parse_args(PUBLISHED.split())
    assert args.training.warmup_steps == 0.03
    assert args.training.eval_strategy == "no"
    assert args.training.gradient_checkpointing is True
    assert args.training.save_total_limit == 1
    assert args.model.mm_vision_select_layer == -2
    assert args.data.num_video_frames == 8
    assert {"mm_vision_select_layer", "learning_rate", "eval_strategy"} <= args.given


def test_defaults_are_the_published_ones():
    args = parse_args(OUT)
    assert args.model.mm_projector == "mlp2x_gelu"
    assert args.data.data_mixture == "llava_1_5_mm_align"
    assert args.training.model_max_length == 512
    assert not args.training.tune_language_model


def test_only_typed_flags_count_as_given():
    assert parse_args([*OUT, "--num-video-frames=4"]).given == {"output_dir", "report_to", "num_video_frames"}


def test_warmup_steps_win_over_a_warmup_ratio():
    args = parse_args([*OUT, "--warmup_ratio", "0.1", "--warmup_steps", "20"])
    assert args.training.warmup_steps == 20


@pytest.mark.parametrize(
    ("word", "nearest"), [("--learning_rat", "--learning_rate"), ("--tune_visiontower", "--tune_vision_tower")]
)
def test_an_unknown_flag_is_answered_with_the_nearest_one(word, nearest):
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        parse_args([*OUT, word, "1"])


def test_a_stage_is_a_row_of_settings_and_flags_win_over_it():
    args = parse_args([*OUT, "--stage", "align", "--learning_rate", "0.5"])
    assert args.training.tune_mm_projector
    assert not args.training.tune_vision_tower
    assert args.training.learning_rate == 0.5
    assert args.training.warmup_steps == 0.03
    with pytest.raises(KeyError, match="did you mean 'align'"):
        parse_args([*OUT, "--stage", "algn"])


def test_an_entry_point_may_change_defaults_but_not_flags():
    defaults = {"gradient_checkpointing": True}
    assert parse_args(OUT, defaults=defaults).training.gradient_checkpointing
    given = parse_args([*OUT, "--gradient_checkpointing", "False"], defaults=defaults)
    assert not given.training.gradient_checkpointing


def test_a_flag_that_cannot_have_an_effect_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        parse_args([*OUT, "--lazy_preprocess", "False", "--overwrite_output_dir", "--mpt_attn_impl", "triton"])
    assert "--lazy_preprocess False has no effect" in caplog.text
    assert "--overwrite_output_dir has no effect" in caplog.text
    assert "--mpt_attn_impl triton has no effect" in caplog.text


def test_a_flag_whose_job_is_not_built_is_an_error_not_a_silent_full_fine_tune():
    with pytest.raises(ValueError, match="--num_time_tokens 8 is not available"):
        parse_args([*OUT, "--num_time_tokens", "8"])
    parse_args([*OUT, "--lora_enable", "False", "--bits", "16"])


def test_group_by_modality_length_is_a_sampler():
    assert parse_args([*OUT, "--group_by_modality_length", "True"]).training.sampler == "modality_length"
    assert parse_args([*OUT, "--group_by_length", "True"]).training.sampler == "length"


def test_reporters_are_a_list_and_auto_means_tensorboard_where_it_is_installed():
    assert parse_args(OUT).training.report_to == []
    assert set(parse_args(["--output_dir", "out"]).training.report_to) <= {"tensorboard"}
    assert parse_args(["--output_dir", "o", "--report_to", "dvclive,clearml"]).training.report_to == [
        "dvclive",
        "clearml",
    ]


NVILA = "--dynamic_s2 True --image_aspect_ratio dynamic_s2 --s2_scales 28,56 --max_tiles 6".split()


def test_flags_of_tiles_that_nothing_reads_are_answered(caplog):
    with caplog.at_level(logging.WARNING):
        args = parse_args([*OUT, *NVILA, "--s2_resize_output_to_scale_idx", "-1"])
    assert caplog.text == ""
    assert (args.model.dynamic_s2, args.model.s2_resize_output_to_scale_idx) == (True, -1)
    with caplog.at_level(logging.WARNING):
        parse_args([*OUT, "--max_tiles", "6", "--s2_scales", "28,56"])
        parse_args([*OUT, *NVILA, "--min_tiles", "2"])
        parse_args([*OUT, "--dynamic_s2", "True"])
    assert "--max_tiles has no effect without --image_aspect_ratio dynamic or dynamic_s2" in caplog.text
    assert "--s2_scales has no effect without --s2 True or --dynamic_s2 True" in caplog.text
    assert "--min_tiles has no effect without --image_aspect_ratio dynamic" in caplog.text
    assert "every picture stays one tile" in caplog.text


def test_a_short_time_limit_leaves_time_to_train():
    assert parse_args([*OUT, "--total_time_limit", "60"]).training.pre_terminate_time == 10
    assert parse_args([*OUT, "--total_time_limit", "5"]).training.pre_terminate_time == 1
    with pytest.raises(ValueError, match=r"--pre_terminate_time is 10 minutes, expected .* less than --total_time_lim"):
        parse_args([*OUT, "--total_time_limit", "10", "--pre_terminate_time", "10"])
