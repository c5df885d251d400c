"""Flags of the published launch scripts: accepted with their meaning, or refused by name with what to do instead."""

from __future__ import annotations

import logging

import pytest

from llava.train.parse import RunArguments, parse_args
from llava.train.published_flags import REFUSED

EVERYWHERE = (
    "--mm_vision_select_layer -2 --mm_use_im_start_end False --mm_use_im_patch_token False --bf16 True "
    "--output_dir out --num_train_epochs 1 --per_device_train_batch_size 16 --gradient_accumulation_steps 2 "
    "--evaluation_strategy no --save_strategy steps --save_steps 100 --save_total_limit 1 --weight_decay 0. "
    "--warmup_ratio 0.03 --lr_scheduler_type cosine --logging_steps 1 --gradient_checkpointing True "
    "--dataloader_num_workers 4 "
)
OLDER = "--per_device_eval_batch_size 4 --tf32 True --lazy_preprocess True "
LLAVA = (
    "--data_path d.json --image_folder d --vision_tower a/clip --mm_projector_type mlp2x_gelu --model_max_length 2048 "
)

VILA = "--data_mixture m --vision_tower a/siglip --mm_vision_select_feature cls_patch "
TUNED = "--tune_vision_tower {} --tune_mm_projector {} --tune_language_model {} "
TILES = "--dynamic_s2 True --s2_scales 448,896,1344 --s2_max_split_size 448 --s2_resize_output_to_scale_idx -1 "

SCRIPTS = {
    "LLaVA-1.5 pretrain": EVERYWHERE + OLDER + LLAVA
    + "--model_name_or_path a/vicuna --version plain --tune_mm_mlp_adapter True --learning_rate 1e-3",
    "LLaVA-1.5 finetune": EVERYWHERE + OLDER + LLAVA
    + "--model_name_or_path a/vicuna --version v1 --pretrain_mm_mlp_adapter p.bin --image_aspect_ratio pad "
    "--group_by_modality_length True --learning_rate 2e-5",
    "LLaVA-1.5 LoRA": EVERYWHERE + OLDER + LLAVA
    + "--lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 --model_name_or_path a/vicuna "
    "--version v1 --pretrain_mm_mlp_adapter p.bin --image_aspect_ratio pad --group_by_modality_length True "
    "--learning_rate 2e-4",
    "VILA-1.5 align": EVERYWHERE + OLDER
    + "--model_name_or_path a/vicuna --version plain --data_mixture llava_1_5_mm_align --vision_tower a/clip "
    "--mm_projector_type mlp2x_gelu --tune_mm_mlp_adapter True --learning_rate 1e-3 --model_max_length 2048",
    "VILA-1.5 sft": EVERYWHERE + OLDER + VILA + TUNED.format(True, True, True)
    + "--model_name_or_path a/b --version v1 --mm_projector mlp_downsample --image_aspect_ratio resize "
    "--learning_rate 1e-4 --model_max_length 4096 --vflan_no_system_prompt True",
    "NVILA-Lite sft": EVERYWHERE + VILA + TUNED.format(True, True, True)
    + "--model_name_or_path a/b --mm_projector mlp_downsample_3x3_fix --image_aspect_ratio dynamic "
    "--learning_rate 2e-5 --model_max_length 4096 --vflan_no_system_prompt True",
    "NVILA stage 1": EVERYWHERE + VILA + TILES + TUNED.format(False, True, False)
    + "--model_name_or_path a/qwen --chat_template qwen2 --mm_projector mlp_downsample --image_aspect_ratio dynamic_s2 "
    "--learning_rate 1e-3 --model_max_length 8192",
    "NaVILA 8 frames": EVERYWHERE + OLDER + VILA + TUNED.format(True, True, True)
    + "--longvila_sampler True --model_name_or_path a/b --version llama_3 --seed 10 --mm_projector mlp_downsample "
    "--num_video_frames 8 --image_aspect_ratio resize --do_eval False --fps 0.0 --learning_rate 1e-4 "
    "--model_max_length 4096",
    "LLaVA-NeXT video": EVERYWHERE + OLDER
    + "--model_name_or_path a/b --version qwen_1_5 --data_path d.json --image_folder d --vision_tower a/siglip "
    "--mm_projector_type mlp2x_gelu --mm_tunable_parts=mm_vision_tower,mm_mlp_adapter,mm_language_model "
    "--mm_vision_tower_lr=2e-6 --group_by_modality_length True --image_aspect_ratio anyres_max_9 --run_name n "
    "--learning_rate 1e-5 --model_max_length 32768 --torch_compile True --torch_compile_backend inductor "
    "--dataloader_drop_last True",
}  # fmt: skip


def parsed(text: str) -> RunArguments:
    return parse_args([*text.split(), "--report_to", "none"])


@pytest.mark.parametrize("script", SCRIPTS)
def test_all_flags_of_a_published_script_are_accepted_with_todays_meaning(script):
    args = parsed(SCRIPTS[script])
    training = args.training
    assert (training.warmup_steps, training.eval_strategy, training.lr_scheduler_type) == (0.03, "no", "cosine")
    assert training.gradient_checkpointing and training.bf16
    assert args.model.mm_vision_select_layer == -2
    assert training.tokens_per_batch == -1, "a batch holds as many samples as the script says"


def test_older_names_reach_their_places():
    aligned = parsed(SCRIPTS["LLaVA-1.5 pretrain"])
    assert (aligned.training.tune_mm_projector, aligned.training.tune_language_model) == (True, False)
    assert aligned.model.mm_projector == "mlp2x_gelu"
    assert parsed(SCRIPTS["LLaVA-1.5 finetune"]).model.mlp_path == "p.bin"
    assert parsed(SCRIPTS["LLaVA-1.5 LoRA"]).training.sampler == "modality_length"
    following = parsed(SCRIPTS["LLaVA-NeXT video"]).training
    assert following.vision_tower_lr == 2e-6
    assert following.tune_vision_tower and following.tune_mm_projector and following.tune_language_model


def test_parts_that_are_not_listed_are_not_tuned_and_unknown_ones_are_corrected():
    training = parsed("--output_dir out --mm_tunable_parts mm_mlp_adapter --stage sft").training
    assert (training.tune_mm_projector, training.tune_vision_tower, training.tune_language_model) == (
        True,
        False,
        False,
    )
    with pytest.raises(ValueError, match="did you mean 'mm_language_model'"):
        parsed("--output_dir out --mm_tunable_parts mm_languagemodel")


def test_flags_that_would_train_another_model_are_refused_together_by_name():
    text = "--output_dir out --frames_upbound 110 --mm_newline_position grid --video_encoder {} --num_time_tokens 100"
    with pytest.raises(ValueError, match="3 flag") as error:
        parsed(text)
    for name in ("frames_upbound", "mm_newline_position", "video_encoder"):
        assert f"--{name}: {REFUSED[name]}" in str(error.value)
    with pytest.raises(ValueError, match="--num_time_tokens 100 is not available"):
        parsed("--output_dir out --num_time_tokens 100")


def test_what_the_loader_always_does_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        parsed(SCRIPTS["LLaVA-NeXT video"])
    assert "--dataloader_drop_last True has no effect: every sample is used" in caplog.text


def test_a_script_with_deepspeed_runs_without_it_on_request():
    assert not parsed("--output_dir out --deepspeed zero3.json --deepspeed none").training.deepspeed
