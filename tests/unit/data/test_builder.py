"""Registry files, mixtures, and the names of older programs."""

import json
import logging

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llava.conversation import get_template
from llava.data.base import DataOptions
from llava.data.builder import build_dataset, repeated_indices
from llava.data.dataset import LazySupervisedDataset, make_supervised_data_module
from llava.data.datasets_mixture import DataRegistry, Dataset, Entry, Part, add_dataset, load_registry

NAMES = {name: Entry(name=name, type="llava") for name in ("r2r", "rxr", "scanqa")}
REGISTRY = DataRegistry(
    entries=NAMES, mixtures={"both": ("r2r", "rxr*2"), "all": ("both*2", "scanqa"), "loop": ("loop",)}
)


def said(text: str) -> list[dict]:
    return [{"from": "human", "value": text}, {"from": "gpt", "value": "Yes."}]


@pytest.fixture
def text_registry(tmp_path):
    """Two text-only data sets of 3 and 5 records, a navigation set that is not there, and a named mixture."""
    for name, size in (("a", 3), ("b", 5)):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"conversations": said(f"{name}{i}")} for i in range(size)]))
    entries = {
        "a": {"type": "llava", "data_path": "a.json", "description": "three"},
        "b": {"dataset_type": "torch", "data_path": "b.json"},
        "absent": {"type": "vlnce", "data_path": "absent.json", "media_dir": "."},
        "mixed": ["a*2", "b"],
    }
    (tmp_path / "registry.yaml").write_text(yaml.safe_dump(entries))
    return tmp_path / "registry.yaml"


@pytest.fixture
def build(text_registry, tokenizer, spec):
    def make(mixture, registry=text_registry, **options):
        return build_dataset(
            mixture,
            tokenizer=tokenizer,
            spec=spec,
            template="llama_3",
            options=DataOptions(on_error="raise", **options),
            registry=registry,
            data_root=text_registry.parent,
        )

    return make


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("r2r", [("r2r", 1)]),
        (" scanqa * 2 + r2r", [("scanqa", 2), ("r2r", 1)]),
        ("r2r*0.5+r2r", [("r2r", 0.5), ("r2r", 1)]),
        ("both", [("r2r", 1), ("rxr", 2)]),
        ("all*3", [("r2r", 6), ("rxr", 12), ("scanqa", 3)]),
    ],
)
def test_a_mixture_text_opens_into_parts_in_the_order_written(text, parts):
    assert REGISTRY.parts(text) == [Part(name, float(repeat)) for name, repeat in parts]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scan_qa", "unknown data set or mixture 'scan_qa'; did you mean 'scanqa'"),
        ("zzzzzz", "known: all, both, loop, r2r, rxr, scanqa"),
        ("r2r++rxr", "empty part"),
        ("", "empty part"),
        ("r2r*x", "repeats a data set 'x' times"),
        ("r2r*0", "expected a number above 0"),
        ("r2r*nan", "expected a number above 0"),
        ("loop", "contains itself: loop > loop"),
    ],
)
def test_a_wrong_mixture_text_is_explained(text, message):
    with pytest.raises(ValueError, match=message):
        REGISTRY.parts(text)


def test_the_shipped_registry_names_the_published_data_sets():
    registry = load_registry(data_root="/data")
    assert {"r2r", "rxr", "envdrop", "human", "scanqa", "video_chatgpt", "sharegpt_video", "sharegpt4v_sft"} <= set(
        registry.entries
    )
    assert str(registry.entries["r2r"].paths["media_dir"]) == "/data/NaVILA-Dataset/R2R/train"
    assert str(load_registry().entries["embedded_streaming"].paths["data_path"]).startswith("runs/")
    assert len(registry.parts("navila_sft")) == 8


def test_later_registry_files_override_earlier_ones(text_registry):
    registry = load_registry(f"default, {text_registry}")
    assert registry.entries["a"].description == "three"
    assert "r2r" in registry.entries
    (text_registry.parent / "second.yaml").write_text("{a: [b], r2r: {type: llava, data_path: x.json}}")
    overridden = load_registry(["default", text_registry, text_registry.parent / "second.yaml"])
    assert overridden.entries["r2r"].type == "llava"
    assert overridden.mixtures["a"] == ("b",)
    assert "a" not in overridden.entries


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 3", "data set 'a' of .* is 3"),
        ("a: {data_path: x}", "has no 'type'"),
        ("- a", "holds a list"),
        ("a: [", "no valid YAML"),
    ],
)
def test_a_wrong_registry_file_is_explained(tmp_path, content, message):
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_registry(tmp_path / "r.yaml")


def test_an_unknown_registry_suggests_the_nearest():
    with pytest.raises(FileNotFoundError, match="no data registry 'defualt'; did you mean 'default'"):
        load_registry("defualt")


def test_parts_follow_each_other_and_repeats_repeat(build):
    data = build("mixed")
    assert (data.names, data.sizes, len(data)) == (["a", "b"], [6, 5], 11)
    ids = [data[i]["sample_id"] for i in range(11)]
    assert ids == ["a/0", "a/1", "a/2"] * 2 + [f"b/{i}" for i in range(5)]
    assert data[-1]["sample_id"] == "b/4"
    assert len(data.lengths) == len(data.modality) == 11
    assert set(data.modality) == {"text"}
    assert all(n < 0 for n in data.modality_lengths)
    with pytest.raises(IndexError, match="11 samples"):
        data[11]


def test_a_mixture_is_the_same_every_time(build):
    def ids(**options):
        data = build("b*1.4+a", **options)
        return [data[i]["sample_id"] for i in range(len(data))]

    assert ids() == ids()
    assert len(ids()) == 5 + 2 + 3
    assert {tuple(ids(seed=seed)) for seed in range(6)} != {tuple(ids())}


@given(st.integers(0, 30), st.floats(0.01, 4))
def test_a_repeated_data_set_has_every_sample_as_often_as_asked(size, repeat):
    indices = repeated_indices(size, repeat, seed=0)
    counts = [list(indices).count(i) for i in range(size)]
    assert all(int(repeat) <= c <= int(repeat) + 1 for c in counts)
    assert len(indices) == size * int(repeat) + round((repeat - int(repeat)) * size)


def test_missing_files_name_key_path_and_next_step(build):
    with pytest.raises(FileNotFoundError, match=r"'absent': data_path is .*absent\.json, .* set data_root"):
        build("absent")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "lava"}, "unknown type 'lava'; did you mean 'llava'"),
        ({"type": "llava"}, r"needs \['data_path'\]"),
        ({"type": "llava", "data_path": "a.json", "grounding_path": "x"}, "takes no 'grounding_path'"),
        ({"type": "llava", "data_path": "a.json", "max_decision": 3}, "unknown option 'max_decision'; did you mean"),
    ],
)
def test_a_wrong_entry_is_explained(build, tmp_path, entry, message):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"x": entry}))
    with pytest.raises(ValueError, match=message):
        build("x", registry=tmp_path / "r.yaml")


def test_an_entry_may_set_options_of_its_own(build, text_registry, tmp_path):
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump({"x": {"type": "llava", "data_path": "a.json", "on_error": "skip"}})
    )
    data = build("x+a", registry=[text_registry, tmp_path / "r.yaml"])
    assert [part.dataset.context.options.on_error for part in data.parts] == ["skip", "raise"]


def test_different_cameras_are_reported_and_equal_ones_offered(navigation_folder, tokenizer, spec, caplog):
    (navigation_folder / "camera.json").write_text('{"height_m": 1.25}')
    other = navigation_folder / "other" / "train"
    other.mkdir(parents=True)
    (other.parent / "camera.json").write_text('{"height_m": 0.5}')
    paths = {"data_path": navigation_folder / "annotations.json"}
    entries = {
        "one": Entry(name="one", type="vlnce", paths={**paths, "media_dir": navigation_folder / "train"}),
        "two": Entry(name="two", type="streaming", paths={**paths, "media_dir": other}),
    }
    registry = DataRegistry(entries=entries, mixtures={})

    def build(mixture):
        return build_dataset(mixture, tokenizer=tokenizer, spec=spec, template="llama_3", registry=registry)

    single = build("one")
    assert single.camera_profile.height_m == 1.25
    assert single.navigation_prompt == {"format": "navila", "instruction": "normalised", "num_frames": 8}
    with caplog.at_level(logging.WARNING):
        mixed = build("one+two")
    assert mixed.camera_profile is None
    assert "different cameras" in caplog.text
    assert "different navigation prompts" in caplog.text


def test_the_names_of_older_programs_lead_here(text_registry, tokenizer, spec):
    entry = Dataset(dataset_name="c", dataset_type="torch", data_path=str(text_registry.parent / "a.json"))
    registry = add_dataset(load_registry(), entry)
    module = make_supervised_data_module(
        tokenizer, "c*2", max_length=64, registry=registry, spec=spec, template="llama_3", collate={"mode": "pack"}
    )
    assert len(module["train_dataset"]) == 6
    assert module["eval_dataset"] is None
    batch = module["data_collator"]([module["train_dataset"][i] for i in range(2)])
    assert batch["sample_ids"] == ["c/0", "c/1"]
    lazy = LazySupervisedDataset(
        text_registry.parent / "b.json", text_registry.parent, tokenizer, spec=spec, template=get_template("llama_3")
    )
    assert len(lazy) == 5
    assert lazy[0]["sample_id"] == "b/0"
