"""The table of tasks and what a command line means by it."""

import pytest

from llava.eval.tasks import Task, load_tasks, select_tasks

TASKS = {
    "a": Task(name="a", tags=["core", "local"]),
    "b": Task(name="b", tags=["video"]),
    "c": Task(name="c", tags=["core", "video"]),
}


def names(**chosen):
    return [task.name for task in select_tasks(TASKS, **chosen)]


def test_names_and_tags_choose():
    assert names() == ["a", "b", "c"]
    assert names(names=["c", "a"]) == ["c", "a"]
    assert names(include=["core"]) == ["a", "c"]
    assert names(include=["core"], exclude=["video"]) == ["a"]


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"names": ["navigation-embeded"]}, "unknown task 'navigation-embeded'; did you mean 'navigation-embedded'"),
        ({"include": ["navigatoin"]}, "unknown tag 'navigatoin'; did you mean 'navigation'"),
        ({"names": ["navigation-embedded"], "exclude": ["core"]}, "no task is left"),
    ],
)
def test_unknown_words_are_answered_with_the_nearest(chosen, words):
    with pytest.raises(ValueError, match=words):
        select_tasks(load_tasks(), **chosen)


def test_every_row_of_the_registry_can_run():
    tasks = load_tasks()
    assert {"navigation-embedded", "navigation-embedded-rooms"} <= set(tasks)
    for task in tasks.values():
        assert callable(task.load_runner())
        assert task.tags
        assert task.metrics


def test_a_misspelt_key_of_a_row_is_named(tmp_path):
    (tmp_path / "r.yaml").write_text("toy: {tag: [core]}")
    with pytest.raises(ValueError, match="unknown key 'tag'; did you mean 'tags'"):
        load_tasks(tmp_path / "r.yaml")


def test_a_row_without_a_runner_says_what_to_add():
    with pytest.raises(ValueError, match="add `runner: module:function`"):
        Task(name="toy").load_runner()
