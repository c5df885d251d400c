"""The disk tier: survives the process, is shared by several, and never serves a file that is not what it seems."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.scene.cache.disk import SUFFIX, VERSION
from llava.scene.token_cache import BackgroundTokenCache, CacheConfig
from tests.unit.scene.token_cache_toy import (
    cache,
    change,
    encode,
    fill,
    picture,
    provenance,
    request,
    scope,
    value_bytes,
)

FORK = multiprocessing.get_context("fork")


def on_disk(folder: Path, **fields) -> BackgroundTokenCache:
    return cache(**({"disk_folder": folder, "disk_bytes": 2**20, "write_through": True} | fields))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def in_child(work, *arguments) -> int:
    """Exit code of a process of its own; a negative signal where it was killed."""
    process = FORK.Process(target=work, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with the tokens of one picture."""
    fill(on_disk(tmp_path), request())
    (file,) = files(tmp_path)
    assert len(file.name) == 64 + len(SUFFIX)
    return tmp_path


def test_tokens_and_kv_of_an_earlier_run_are_served_bit_for_bit(tmp_path):
    fill(on_disk(tmp_path), request(want_kv=True))
    later = on_disk(tmp_path)
    with later.lookup(request(change(picture(), 15), background=None, want_kv=True)) as answer:
        assert (answer.provenance, answer.tier) == ("exact_kv", "disk")
        assert answer.shared().kv[1][1].shape == (1, 1, 13, 3)
    with later.lookup(request()) as answer:
        assert (answer.provenance, answer.tier) == ("exact_tokens", "disk")
        assert torch.equal(answer.shared().tokens, encode(answer).tokens)
        assert provenance(later, request()) == "exact_tokens"


def test_without_write_through_closing_writes_what_lies_in_memory(tmp_path):
    store = on_disk(tmp_path, write_through=False)
    fill(store, request())
    assert files(tmp_path) == []
    assert store.flush() == 1
    assert store.flush() == 0
    store.close()
    assert provenance(on_disk(tmp_path), request()) == "exact_tokens"


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def garbage(file: Path) -> None:
    file.write_bytes(b"no tensors at all")


def empty(file: Path) -> None:
    file.write_bytes(b"")


def other_head(**changes: str):
    def rewrite(file: Path) -> None:
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            head = opened.metadata()
        save_file(load_file(file), file, metadata=head | changes)

    return rewrite


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (truncate, "corrupt"),
        (flip, "corrupt"),
        (garbage, "corrupt"),
        (empty, "corrupt"),
        (other_head(origin="{}"), "corrupt"),
        (other_head(format="something else"), "foreign"),
        (other_head(version=f"{VERSION}0"), "version"),
    ],
)
def test_a_spoiled_file_is_a_reported_miss(written, spoil, reason, caplog):
    store = on_disk(written)
    spoil(files(written)[0])
    with caplog.at_level(logging.WARNING):
        assert provenance(store, request()) == "miss"
    assert store.stats.refused_files == {reason: 1}
    assert reason in caplog.text
    fill(store, request())
    assert provenance(on_disk(written), request()) == ("exact_tokens" if reason == "corrupt" else "miss")


def test_spoiled_files_do_not_stop_a_cache_from_opening(written):
    (written / f"{'0' * 64}{SUFFIX}").write_bytes(b"junk")
    (written / "notes.txt").write_text("not ours")
    store = on_disk(written)
    assert store.stats.refused_files == {"corrupt": 1}
    assert provenance(store, request(background=None)) == "exact_tokens"
    assert (written / "notes.txt").exists()


def test_the_file_of_another_picture_under_this_name_is_not_served(tmp_path):
    store = on_disk(tmp_path)
    fill(store, request(picture(1)))
    (one,) = files(tmp_path)
    fill(store, request(picture(2)))
    (two,) = set(files(tmp_path)) - {one}
    os.replace(two, one)
    fresh = on_disk(tmp_path)
    assert provenance(fresh, request(picture(1))) == "miss"
    assert fresh.stats.refused_files["foreign"] >= 1


def test_entries_of_another_model_in_the_folder_are_left_alone(written):
    other = on_disk(written)
    asked = request(scope=scope(model_state="another model"))
    assert provenance(other, asked) == "miss"
    fill(other, asked)
    assert len(files(written)) == 2
    assert other.invalidate(model_state="another model") == 2
    assert provenance(on_disk(written), request()) == "exact_tokens"


def test_files_are_bounded_by_bytes_and_the_least_recently_used_one_goes(tmp_path):
    store = on_disk(tmp_path)
    fill(store, request(picture(1)))
    size = files(tmp_path)[0].stat().st_size
    store = on_disk(tmp_path, disk_bytes=2 * size + 100, device_bytes=0)
    fill(store, request(picture(2)))
    os.utime(files(tmp_path)[0], ns=(1, 1))
    os.utime(files(tmp_path)[1], ns=(2, 2))
    assert provenance(store, request(picture(1))) == "exact_tokens"  # used now, so picture 2 is the oldest
    fill(store, request(picture(3)))
    assert [provenance(store, request(picture(seed))) for seed in (1, 2, 3)] == ["exact_tokens", "miss", "exact_tokens"]
    assert store.stats.bytes_by_tier["disk"] <= 2 * size + 100
    assert store.stats.evictions["disk"] == 1


def test_an_entry_larger_than_the_tier_is_not_written(tmp_path):
    store = on_disk(tmp_path, disk_bytes=value_bytes() + 1)
    fill(store, request())
    assert files(tmp_path) == [] and list(tmp_path.glob("*.tmp")) == []
    assert provenance(store, request()) == "exact_tokens"  # of the device


def write_and_die(folder: Path) -> None:
    store = on_disk(folder)
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    fill(store, request())


def test_a_process_killed_while_writing_leaves_nothing_that_is_served(tmp_path):
    assert in_child(write_and_die, tmp_path) == -signal.SIGKILL
    assert len(list(tmp_path.glob("*.tmp"))) == 1
    store = on_disk(tmp_path)
    assert provenance(store, request()) == "miss"
    assert list(tmp_path.glob("*.tmp")) == []
    fill(store, request())
    assert provenance(on_disk(tmp_path), request()) == "exact_tokens"


def write_beyond_the_limit(folder: Path) -> None:
    """A file system without room, as far as this process can tell."""
    store = on_disk(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    fill(store, request(picture(1)), request(picture(2)))
    stats = store.stats
    served = provenance(store, request(picture(1))) == "exact_tokens"
    os._exit(0 if (stats.disk_errors, stats.disk_writable, served) == (1, False, True) else 1)


def test_a_full_disk_ends_writing_and_nothing_else(tmp_path):
    assert in_child(write_beyond_the_limit, tmp_path) == 0
    assert files(tmp_path) == []
    assert list(tmp_path.glob("*.tmp")) == []


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "cache").write_text("something else")
    for folder in (tmp_path / "cache", tmp_path / "cache" / "below"):
        with pytest.raises(ValueError, match=rf"disk_folder is {folder}, expected a folder that can be written to"):
            on_disk(folder)


def test_a_failed_write_is_reported_once_with_what_to_do(tmp_path, monkeypatch, caplog):
    store = on_disk(tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llava.scene.cache.disk.save_file", full)
    with caplog.at_level(logging.WARNING):
        fill(store, request(picture(1)), request(picture(2)))
    assert caplog.text.count("No space left on device") == 1
    assert "make room there" in caplog.text
    assert "takes no more writes" in str(store.stats)
    assert provenance(store, request(picture(1))) == "exact_tokens"


def fill_many(folder: Path, limit: int, start: int) -> None:
    store = BackgroundTokenCache(
        CacheConfig(device_bytes=value_bytes(), disk_folder=folder, disk_bytes=limit, write_through=True)
    )
    for round_ in range(3):
        for seed in range(12):
            with store.get_or_compute(request(picture((seed + start) % 12)), encode) as answer:
                if not torch.equal(answer.shared().tokens, encode(answer).tokens):
                    os._exit(10 + round_)
    os._exit(0 if store.stats.disk_writable and not store.stats.refused_files else 1)


def test_two_processes_share_a_folder_within_its_bytes(tmp_path):
    fill(on_disk(tmp_path), request())
    limit = 5 * files(tmp_path)[0].stat().st_size + 100
    processes = [FORK.Process(target=fill_many, args=(tmp_path, limit, start)) for start in (0, 6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sum(file.stat().st_size for file in files(tmp_path)) <= limit
    assert list(tmp_path.glob("*.tmp")) == []


def test_what_another_process_wrote_is_found_without_opening_the_folder_again(tmp_path):
    store = on_disk(tmp_path)
    assert in_child(fill_from_child, tmp_path) == 0
    assert provenance(store, request()) == "exact_tokens"
    assert provenance(store, request(picture(9), background=None)) == "miss"  # its cells are not known here yet
    assert store.scan_disk() == 2
    assert provenance(store, request(picture(9), background=None)) == "exact_tokens"


def fill_from_child(folder: Path) -> None:
    fill(on_disk(folder), request(), request(picture(9), background=list(range(7))))
    os._exit(0)
