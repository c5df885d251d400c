"""Files are read and written whole, by their ending; broken ones are named."""

import gzip

import pytest

from llava.utils.io import atomic_path, load, save

RECORDS = [{"id": 1, "text": "Zürich → STOP"}, {"id": 2, "text": ""}]


@pytest.mark.parametrize("ending", ["json", "jsonl", "yaml", "yml", "json.gz", "jsonl.gz"])
def test_what_is_saved_is_loaded(tmp_path, ending):
    save(tmp_path / "deep" / f"records.{ending}", RECORDS)
    assert load(tmp_path / "deep" / f"records.{ending}") == RECORDS


def test_packed_files_are_the_same_bytes_every_time(tmp_path):
    for name in "ab":
        save(tmp_path / f"{name}.json.gz", RECORDS)
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("cut.json", b'[{"a": 1}, {"a"', "cut.json is malformed.*may be cut off"),
        ("cut.jsonl", b'{"a": 1}\n{"a"\n', r"cut.jsonl is malformed: line 2"),
        ("cut.json.gz", gzip.compress(b"[1, 2, 3]" * 100, mtime=0)[:20], "cut.json.gz cannot be read"),
        ("odd.yaml", b"a: [1", "odd.yaml is malformed"),
        ("odd.json", b"\xff\xfe", "odd.json cannot be read as text"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load(tmp_path / name)


def test_missing_files_and_unknown_endings_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone.json does not exist"):
        load(tmp_path / "gone.json")
    with pytest.raises(ValueError, match=r"ends in '.jsn', which is not known; did you mean '.json'"):
        save(tmp_path / "x.jsn", {})


def test_an_error_while_writing_leaves_the_old_file_and_no_rubbish(tmp_path):
    save(tmp_path / "a.json", [1])
    with pytest.raises(TypeError), atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text(3)
    assert load(tmp_path / "a.json") == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
