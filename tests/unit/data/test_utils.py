"""Annotation files: read whole, or refused with the place where they break."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.data.utils import CachingTokenizer, SmallCache, read_json, read_records

RECORDS = [{"q": "a\nb", "n": 1}, {"q": "ü\u2028x", "frames": ["1/frame_0.jpg"]}]


@pytest.mark.parametrize("layout", ["list", "indented", "lines", "gz"])
def test_every_layout_gives_the_same_records(tmp_path, layout):
    text = {
        "list": json.dumps(RECORDS),
        "indented": json.dumps(RECORDS, indent=1),
        "lines": "\n".join(json.dumps(r, ensure_ascii=False) for r in RECORDS) + "\n\n",
        "gz": json.dumps(RECORDS),
    }[layout]
    path = tmp_path / ("a.json.gz" if layout == "gz" else "a.json")
    path.write_bytes(gzip.compress(text.encode()) if layout == "gz" else text.encode())
    assert read_records(path) == RECORDS


def test_a_truncated_list_names_record_line_and_character(tmp_path):
    path = tmp_path / "a.json"
    whole = json.dumps([{"q": f"go {i}"} for i in range(4)], indent=0)
    path.write_text(whole[:-10])
    with pytest.raises(ValueError, match=r"a\.json is broken in record 3, line 12, character 6\d of 6\d.*truncated"):
        read_records(path)


def test_a_broken_line_names_its_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": 1}\n{"q": \n{"q": 3}\n')
    with pytest.raises(ValueError, match=r"record 1, line 2, character 1\d of \d+: .*correct the file there"):
        read_records(path)


@given(st.integers(0, 60))
def test_any_cut_of_a_list_is_noticed(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "a.json"
    text = json.dumps([{"q": "go to the ball", "frames": ["a", "b"]}, {"n": 1}])
    path.write_text(text[: min(cut, len(text) - 1)])
    with pytest.raises(ValueError, match=r"a\.json"):
        read_records(path)


@pytest.mark.parametrize(
    ("text", "message"), [("", "is empty"), (" \n", "is empty"), ("[1]", "is a int"), ("[{} {}]", "expected ','")]
)
def test_other_contents_are_refused(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_records(path)


def test_a_cut_gzip_and_a_wrong_encoding_are_named(tmp_path):
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b'[{"q": 1}]')[:-6])
    (tmp_path / "b.json").write_bytes(b'[{"q": "\xff"}]')
    with pytest.raises(ValueError, match="no complete gzip"):
        read_records(tmp_path / "a.json.gz")
    with pytest.raises(ValueError, match="not UTF-8 at byte 8"):
        read_json(tmp_path / "b.json")


def test_repeated_strings_are_stored_once(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"frames": ["1/frame_0.jpg", "1/frame_1.jpg"]}] * 2))
    first, second = read_records(path)
    assert first["frames"][1] is second["frames"][1]


def test_a_small_cache_forgets_the_least_recently_used():
    cache, made = SmallCache(2), []
    for key in "abacb":
        cache.get(key, lambda key=key: made.append(key))
    assert made == ["a", "b", "c", "b"]


def test_a_caching_tokenizer_answers_like_the_tokenizer(tokenizer):
    cached = CachingTokenizer(tokenizer)
    for _ in range(2):
        for texts in ("↑↑", ["↑↑", "Go to the ball."]):
            assert cached(texts).input_ids == tokenizer(texts).input_ids
            for add in (True, False):
                ours = cached(texts, add_special_tokens=add)
                assert ours["input_ids"] == tokenizer(texts, add_special_tokens=add)["input_ids"]
    assert cached.bos_token_id == tokenizer.bos_token_id
    assert cached.get_vocab() == tokenizer.get_vocab()
