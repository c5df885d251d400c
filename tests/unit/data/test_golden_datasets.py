"""The recorded data sets of the original project: text exact, pictures within one grey level."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from llava.batch import VisualSpec
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.base import DataOptions
from llava.data.builder import build_dataset
from llava.data.collate import DataCollator
from llava.data.datasets_mixture import load_registry
from llava.data.utils import BrokenSampleError
from llava.mm_utils import to_uint8_tensor
from llava.utils.tokenizer import TokenizationCompat
from llava.video.decode import read_frames, read_picture

MIXTURE = "r2r+rxr+envdrop+human+scanqa*2+video_chatgpt+sharegpt_video+sharegpt4v_sft"
BROKEN = {("r2r", 8), ("r2r", 9), ("envdrop", 3), ("scanqa", 3), ("scanqa", 7)}
DRAWN = {("scanqa", 0), ("scanqa", 4)}
GREY = 2 / 255
"""One grey level after normalisation by mean 0.5 and deviation 0.5."""


@pytest.fixture(scope="module")
def folder(golden):
    return golden / "E_vln_datasets"


@pytest.fixture(scope="module")
def recorded(folder):
    return json.loads((folder / "samples.json").read_text())


@pytest.fixture(scope="module")
def mixture(golden, folder):
    return build_dataset(
        MIXTURE,
        tokenizer=AutoTokenizer.from_pretrained(golden / "A_navila/checkpoint/llm"),
        spec=VisualSpec(image_size=70, tokens_per_image=9),
        template="llama_3",
        options=DataOptions(on_error="raise", tokenization_compat=TokenizationCompat.navila()),
        data_root=folder,
    )


def unexpanded(fields, image_token_id: int) -> tuple[list[int], list[int]]:
    """Ids and labels with one -200 per picture, as the original writes them."""
    ids, labels, shown = [], [], -1
    for token, label, frame in zip(*(fields[k].tolist() for k in ("input_ids", "labels", "frame_ids")), strict=True):
        if token != image_token_id:
            ids.append(token)
            labels.append(label)
        elif frame > shown:
            ids.append(IMAGE_TOKEN_INDEX)
            labels.append(label)
            shown = frame
    return ids, labels


def samples(recorded, *, broken: bool):
    """(index in the mixture, recorded sample)."""
    for index, sample in enumerate(recorded["samples"]):
        if ((sample["dataset"], sample["index"]) in BROKEN) == broken:
            yield index, sample


def test_the_mixture_has_the_recorded_sizes_and_order(mixture, recorded):
    assert (len(mixture), mixture.sizes) == (recorded["total_len"], recorded["sub_lens"])
    assert [name for name, n in zip(mixture.names, mixture.sizes, strict=True) for _ in range(n)] == [
        sample["dataset"] for sample in recorded["samples"]
    ]


def test_ids_and_labels_are_equal(mixture, recorded):
    image_token_id = mixture.parts[0].dataset.context.image_token_id
    compared = 0
    for index, sample in samples(recorded, broken=False):
        if (sample["dataset"], sample["index"]) in DRAWN:
            continue  # which of several answers is drawn is our own choice
        ids, labels = unexpanded(mixture[index], image_token_id)
        assert ids == sample["input_ids"], sample["dataset"]
        assert labels == sample["labels"], sample["dataset"]
        compared += 1
    assert compared == 24


def test_a_drawn_answer_is_one_of_the_given_ones(mixture, recorded):
    tokenizer = mixture.parts[0].dataset.context.tokenizer
    for index, sample in samples(recorded, broken=False):
        if (sample["dataset"], sample["index"]) in DRAWN:
            ours = mixture[index]
            said = tokenizer.decode(ours["input_ids"][ours["labels"] != IGNORE_INDEX])
            assert said in ("red<|end_of_text|>", "blue<|end_of_text|>")


def test_the_frames_are_the_recorded_ones(mixture, recorded, folder):
    names = {"r2r": "R2R/train", "rxr": "RxR/train", "human": "Human/raw_frames"}
    checked = 0
    for index, sample in samples(recorded, broken=False):
        dataset = next(p.dataset for p in mixture.parts if p.dataset.name == sample["dataset"])
        if sample["dataset"] == "sharegpt4v_sft":
            continue
        record = dataset.records[sample["index"] % len(dataset)]
        marks = sample["frame_marks"]
        if sample["dataset"] in names:
            root = folder / "NaVILA-Dataset" / names[sample["dataset"]]
            frames = [None if m < 0 else read_picture(root / record["frames"][m]) for m in marks]
        else:
            decoded = iter(read_frames(dataset.clip_path(record), [m for m in marks if m >= 0]))
            frames = [None if m < 0 else next(decoded) for m in marks]
        black = torch.zeros(3, 70, 70, dtype=torch.uint8)
        expected = [black if f is None else to_uint8_tensor(f, dataset.context.spec) for f in frames]
        assert torch.equal(mixture[index]["images"], torch.stack(expected)), sample["dataset"]
        checked += 1
    assert checked == 23


@pytest.mark.parametrize(("name", "index"), [("r2r_1", 1), ("r2r_5", 5), ("envdrop_1", 13)])
def test_pictures_are_within_one_grey_level(mixture, folder, name, index):
    expected = np.load(folder / "pixel_values_some.npz")[name]
    ours = (mixture[index]["images"].numpy() / 255 - 0.5) / 0.5
    assert np.abs(ours - expected).max() <= GREY + 1e-5


def test_collated_rows_are_equal_up_to_expansion(mixture, folder):
    context = mixture.parts[0].dataset.context
    pad = context.tokenizer.pad_token_id
    batch = DataCollator(pad_token_id=pad, max_length=4096)([mixture[0], mixture[5], mixture[28]])
    expected = np.load(folder / "collated_r2r0_r2r5_sharegpt4v0.npz")
    assert len(batch["images"]) == len(expected["images"]) == 17
    ours = (batch["images"].numpy() / 255 - 0.5) / 0.5
    assert np.abs(ours - expected["images"]).max() <= GREY + 1e-5
    for row in range(3):
        real = batch["attention_mask"][row]
        fields = {key: batch[key][row][real] for key in ("input_ids", "labels", "frame_ids")}
        ids, labels = unexpanded(fields, context.image_token_id)
        mask = expected["attention_mask"][row]
        assert ids == expected["input_ids"][row][mask].tolist()
        assert labels == expected["labels"][row][mask].tolist()
        assert (batch["labels"][row][~real] == IGNORE_INDEX).all()


def test_a_text_only_batch_has_no_dummy_picture(mixture, folder):
    context = mixture.parts[0].dataset.context
    batch = DataCollator(pad_token_id=context.tokenizer.pad_token_id, max_length=4096)([mixture[29]])
    expected = np.load(folder / "collated_text_only.npz")
    for key in ("input_ids", "labels", "attention_mask"):
        assert batch[key].tolist() == expected[key].tolist()
    assert "images" not in batch


def test_what_became_black_frames_is_an_error_with_a_name(mixture, recorded):
    messages = {}
    for index, sample in samples(recorded, broken=True):
        with pytest.raises(BrokenSampleError) as caught:
            mixture[index]
        messages[sample["dataset"], sample["index"]] = str(caught.value)
    assert set(messages) == BROKEN
    assert "does_not_exist.jpg" in messages["r2r", 8]
    assert "'frames' is missing or empty" in messages["r2r", 9]
    assert "absent.mp4 does not exist" in messages["envdrop", 3]
    assert "absent.mp4 does not exist" in messages["scanqa", 3]


def test_errors_say_more_than_the_recorded_ones(folder):
    recorded = json.loads((folder / "registry_errors.json").read_text())
    registry = load_registry(data_root=folder)
    for text in recorded:
        with pytest.raises(ValueError, match=r"did you mean|expected a number above 0, e\.g\."):
            registry.parts(text)


def test_types_and_paths_are_those_of_the_original_registry(folder):
    original = json.loads((folder / "registry_original.json").read_text())
    ours = load_registry(data_root="/PATH_TO_DATA").entries
    for name, entry in original.items():
        if entry["dataset_type"] in ("vlnce", "envdrop"):
            assert ours[name].type == entry["dataset_type"]
            assert str(ours[name].paths["data_path"]) == entry["data_path"]
            assert str(ours[name].paths["media_dir"]) == entry["image_path"].rstrip("/")
        assert name in ours
