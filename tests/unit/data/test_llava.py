"""LLaVA / ShareGPT records in all their forms."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from llava.constants import IGNORE_INDEX
from llava.data.collate import DataCollator
from llava.data.dataset_impl import LLaVADataset
from llava.data.utils import BrokenSampleError
from llava.utils.anyres import AnyresRule
from llava.utils.dynamic_s2 import DynamicS2Rule
from tests.unit.data.toys import SIZE, grey


def said(question: str, answer: str = "Yes.") -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.fixture
def make_data(tmp_path, make_context):
    for name, shade in (("a", 50), ("b", 100), ("c", 150)):
        Image.fromarray(grey(shade)).save(tmp_path / f"{name}.png")

    def make(*records, media_dir=tmp_path, **spec):
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
        context = make_context()
        context = replace(context, spec=replace(context.spec, **spec))
        return LLaVADataset("llava", context, data_path=tmp_path / "a.jsonl", media_dir=media_dir)

    return make


def text_of(sample, tokenizer) -> str:
    """The dialogue with every picture written once."""
    return tokenizer.decode(sample["input_ids"]).split("user<|end_header_id|>\n\n", 1)[1].replace("<image>" * 4, "[p]")


def test_placeholders_stay_where_the_record_has_them(make_data, tokenizer):
    turns = [*said("Look: <image> and <image>"), *said("Now <image> this?", "No.")]
    data = make_data({"id": 1, "image": ["a.png", "b.png", "c.png"], "conversations": turns})
    for _ in range(2):  # a second epoch sees the same
        sample = data[0]
        assert "Look: [p]\nand [p]<|eot_id|>" in text_of(sample, tokenizer)
        assert "Now [p]\nthis?<|eot_id|>" in text_of(sample, tokenizer)
        assert sample["images"][:, 0, 0, 0].tolist() == [50, 100, 150]
    trained = tokenizer.decode(sample["input_ids"][sample["labels"] != IGNORE_INDEX])
    assert trained == "Yes.<|eot_id|>No.<|end_of_text|>"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"image": "a.png"}, "[p]\nWhat?"),
        ({"images": ["a.png", "b.png"]}, "[p]\n [p]\nWhat?"),
        ({"images": [{"path": "a.png"}]}, "[p]\nWhat?"),
        ({}, "What?"),
    ],
)
def test_without_placeholders_all_pictures_open_the_dialogue(make_data, tokenizer, fields, expected):
    data = make_data({**fields, "conversations": said("What?")})
    assert text_of(data[0], tokenizer).startswith(expected + "<|eot_id|>")
    assert ("images" in data[0]) == bool(fields)
    assert data.modality == ["image" if fields else "text"]
    assert data.modality_lengths[0] * (1 if fields else -1) > 0


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"image": "a.png", "conversations": said("<image> <image> What?")},
            r"2 <image> placeholder\(s\).* and 1 picture",
        ),
        ({"conversations": said("<image> What?")}, r"1 <image> placeholder\(s\).* and 0 picture"),
        ({"image": "absent.png", "conversations": said("What?")}, "absent"),
        ({"image": [3], "conversations": said("What?")}, "a picture is 3"),
        ({"image": "a.png"}, "no 'conversations'"),
        ({"conversations": [{"from": "human", "value": "What?"}]}, "needs an answer"),
        ({"conversations": [{"from": "robot", "value": "What?"}]}, "robot"),
        ({"conversations": said("What?", None)}, "an answer is None"),
    ],
)
def test_broken_records_are_named(make_data, record, message):
    with pytest.raises(BrokenSampleError, match=message):
        make_data(record)[0]


def test_pictures_without_a_media_folder_are_an_error_and_text_needs_none(make_data):
    data = make_data(
        {"image": "a.png", "conversations": said("What?")}, {"conversations": said("Who?")}, media_dir=None
    )
    with pytest.raises(BrokenSampleError, match="no media_dir"):
        data[0]
    assert "images" not in data[1]


def test_length_estimates_are_near_the_truth(make_data):
    turns = [*said("<image>\nWhere is the red ball?"), *said("Where is the blue box?"), *said("Stop?", "No.")]
    data = make_data({"image": "a.png", "conversations": turns}, {"conversations": said("Go to the red ball.")})
    true = [len(data[i]["input_ids"]) for i in range(2)]
    assert all(abs(a - b) <= 0.1 * b for a, b in zip(data.lengths, true, strict=True))


def test_a_picture_alone_is_cut_into_tiles_and_several_are_not(make_data, tokenizer, tmp_path):
    Image.new("RGB", (40, 20), (200, 0, 0)).save(tmp_path / "wide.png")
    one = {"image": "wide.png", "conversations": said("<image>\nWhat is it?")}
    two = {"image": ["wide.png", "a.png"], "conversations": said("<image>\n<image>\nWhich?")}
    data = make_data(one, two, aspect_mode="dynamic", min_tiles=1, max_tiles=4)
    assert text_of(data[0], tokenizer).startswith("[p]\n[p]\n[p]\nWhat is it?")
    assert len(data[0]["images"]) == 3  # two tiles side by side, then the whole
    assert text_of(data[1], tokenizer).count("[p]") == len(data[1]["images"]) == 2
    assert data.num_pictures(0) == 5 >= len(data[0]["images"])
    assert data.modality == ["image", "image"]


def anyres() -> dict:
    """Pictures of one, two or four tiles of 2 x 2 tokens, behind the whole."""
    canvases = tuple((rows * SIZE, columns * SIZE) for rows, columns in ((1, 1), (1, 2), (2, 1), (2, 2)))
    return {"aspect_mode": "anyres", "anyres": AnyresRule(resolutions=canvases, patches=2, side=SIZE)}


def test_pictures_of_any_size_take_the_tokens_of_their_layout(make_data, tokenizer, tmp_path):
    Image.new("RGB", (60, 20)).save(tmp_path / "wide.png")
    record = {"image": ["wide.png", "a.png"], "conversations": said("<image>\n<image>\nWhich?")}
    data = make_data(record, **anyres())
    sample = data[0]
    layouts = [data.context.spec.anyres.layout(*size) for size in sample["image_sizes"].tolist()]
    slots = sample["input_ids"] == tokenizer.convert_tokens_to_ids("<image>")
    assert sample["image_sizes"][0].tolist() == [20, 60]
    assert data.num_pictures(0) == 2 * 5  # at most four tiles and the whole, for each
    assert data.lengths[0] >= len(sample["input_ids"]) - 2
    assert sample["image_views"].tolist() == [layout.num_tiles for layout in layouts]
    assert len(sample["images"]) == sum(sample["image_views"])
    for picture, layout in enumerate(layouts):
        assert int((slots & (sample["frame_ids"] == picture)).sum()) == layout.num_tokens


def test_a_sample_that_is_too_long_loses_whole_pictures_with_their_views(make_data, tokenizer, tmp_path):
    Image.new("RGB", (60, 20)).save(tmp_path / "wide.png")
    record = {"image": ["wide.png", "a.png"], "conversations": said("<image>\n<image>\nWhich?")}
    sample = make_data(record, **anyres())[0]
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    second = int((sample["frame_ids"] == 1).nonzero()[0, 0])
    collator = DataCollator(pad_token_id=0, max_length=second + 2, image_token_id=image_id)
    batch = collator([sample])
    assert batch["input_ids"].shape[1] == second
    assert batch["image_sizes"].tolist() == [[20, 60]]
    assert len(batch["images"]) == int(sample["image_views"][0])
    assert collator.statistics.dropped_pictures == 1


def test_plain_pictures_beside_cut_ones_stay_one_view(make_data, tmp_path):
    cut = make_data({"image": "a.png", "conversations": said("<image>\nWhich?")}, **anyres())[0]
    plain = make_data({"image": "a.png", "conversations": said("<image>\nWhich?")})[0]
    batch = DataCollator(pad_token_id=0, max_length=512)([cut, plain])
    assert batch["image_sizes"].tolist() == [[16, 16], [0, 0]]
    rule = anyres()["anyres"]
    assert sum(rule.layout(*size).num_tiles for size in batch["image_sizes"].tolist()) == len(batch["images"])
    assert rule.layout(0, 0).num_tokens == 4


def dynamic_s2(output: int = -1) -> dict:
    """Two scales, the larger one of four to six tiles of 2 x 2 tokens."""
    rule = DynamicS2Rule(scales=(SIZE, 2 * SIZE), patches=2, max_tiles=6, output=output)
    return {"aspect_mode": "dynamic_s2", "dynamic_s2": rule}


@pytest.fixture
def scaled(make_data, tmp_path):
    """One wide picture, the same beside another, text."""
    Image.new("RGB", (60, 20), (200, 0, 0)).save(tmp_path / "wide.png")
    one = {"image": "wide.png", "conversations": said("<image>\nWhat is it?")}
    two = {"image": ["wide.png", "a.png"], "conversations": said("<image>\n<image>\nWhich?")}
    return lambda **how: make_data(one, two, {"conversations": said("Who?")}, **how)


@pytest.mark.parametrize(("output", "tokens"), [(-1, 4 * 4), (0, 4)])
def test_a_picture_alone_is_cut_at_every_scale_and_keeps_its_one_placeholder(scaled, tokenizer, output, tokens):
    data = scaled(**dynamic_s2(output))
    alone, beside, text = data[0], data[1], data[2]
    slots = alone["input_ids"] == tokenizer.convert_tokens_to_ids("<image>")
    assert int(slots.sum()) == tokens  # four tiles in a row: three would be nearest to 60 x 20, but four are the fewest
    assert (len(alone["images"]), alone["image_views"].tolist()) == (1 + 4, [5])
    assert alone["image_sizes"].tolist() == [[20, 60]]
    assert text_of(beside, tokenizer).count("[p]") == len(beside["images"]) == 2
    assert "image_sizes" not in beside and "images" not in text
    assert data.modality == ["image", "image", "text"]
    longest = {-1: 6, 0: 1}[output]
    assert [data.num_pictures(index) for index in range(3)] == [longest, 2, 0]
    assert all(n >= 0.95 * len(data[index]["input_ids"]) for index, n in enumerate(data.lengths))


def test_cut_and_uncut_pictures_share_padded_and_packed_rows(scaled, tokenizer):
    samples = [scaled(**dynamic_s2())[index] for index in (1, 0, 2)]
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    for mode in ("pad", "pack"):
        batch = DataCollator(pad_token_id=0, max_length=512, mode=mode, image_token_id=image_id)(samples)
        assert batch["image_sizes"].tolist() == [[0, 0], [0, 0], [20, 60]]
        layouts = [dynamic_s2()["dynamic_s2"].layout(*size) for size in batch["image_sizes"].tolist()]
        assert sum(layout.num_tiles for layout in layouts) == len(batch["images"])
        assert sum(layout.num_tokens for layout in layouts) == int((batch["input_ids"] == image_id).sum())


def test_a_cut_picture_that_does_not_fit_is_dropped_whole(scaled, tokenizer):
    sample = scaled(**dynamic_s2())[0]
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    first = int((sample["input_ids"] == image_id).nonzero()[0, 0])
    collator = DataCollator(pad_token_id=0, max_length=first + 10, image_token_id=image_id)
    batch = collator([sample])
    assert batch["input_ids"].shape[1] == first
    assert "images" not in batch and batch["image_sizes"].shape == (0, 2)
    assert collator.statistics.dropped_pictures == 1
    with pytest.raises(ValueError, match=r"give DataCollator\(image_token_id="):
        DataCollator(pad_token_id=0, max_length=first + 10)([sample])
