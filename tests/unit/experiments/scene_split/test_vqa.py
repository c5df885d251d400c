"""The pictures and questions of a camera that stands still: true masks, true answers, nothing for a blind model."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict

import numpy as np

from llava.scene.detectors.precomputed import PrecomputedDetector
from llava.utils import io
from playground.experiments.scene_split.drawing import (
    COLOURS,
    HOURS,
    PAINTS,
    SHAPES,
    SIDE,
    Scene,
    Thing,
    background,
    draw_picture,
)
from playground.experiments.scene_split.make_data import write_robot, write_vqa
from playground.experiments.scene_split.pictures import read_masks, read_picture
from playground.experiments.scene_split.robot import move_of
from playground.experiments.scene_split.vqa import KINDS, PLACES, blind_floor, scenes_of, shots

SCENES = [Scene.of(seed) for seed in range(12)]


def every_shot(split="train", count=12):
    return [shot for scene in SCENES for shot in shots(scene, count, split=split)]


def test_a_picture_is_its_background_wherever_no_mask_is():
    for shot in every_shot(count=2):
        picture, masks, names = draw_picture(shot.scene, shot.hour, shot.things)
        outside = ~masks.any(axis=0)
        assert np.array_equal(picture[outside], background(shot.scene)[outside])
        assert names[0] == "clock" and len(masks) == len(shot.things) + 1


def test_a_mask_covers_all_pixels_of_its_object():
    scene = SCENES[0]
    for shape in SHAPES:
        thing = Thing(shape=shape, colour="red", x=100, y=60)
        picture, masks, _ = draw_picture(scene, 3, (thing,))
        assert np.array_equal((picture == COLOURS["red"]).all(axis=-1), masks[1])


def test_the_clock_changes_with_every_hour_and_only_inside_its_mask():
    drawn = [draw_picture(SCENES[0], hour, ())[0] for hour in range(HOURS)]
    assert len({picture.tobytes() for picture in drawn}) == HOURS
    mask = draw_picture(SCENES[0], 0, ())[1][0]
    assert all(np.array_equal(picture[~mask], drawn[0][~mask]) for picture in drawn)


def test_answers_follow_from_the_objects():
    for shot in every_shot():
        answers = {question.kind: question.answer for question in shot.questions()}
        assert tuple(answers) == KINDS
        assert answers["count"] == str(sum(thing.shape == shot.counted for thing in shot.things))
        alone = [thing for thing in shot.things if thing.shape == shot.things[0].shape]
        assert [thing.colour for thing in alone] == [answers["colour"]]
        thing, offset = alone[0], alone[0].x - shot.scene.piece_x
        seen = "above" if thing.y < 74 and abs(offset) < 22 else "left" if offset < 0 else "right"
        assert answers["place"] == seen
        assert answers["furniture"] == shot.scene.piece_paint


def test_objects_stand_inside_the_picture_and_never_on_each_other():
    for shot in every_shot():
        _, masks, _ = draw_picture(shot.scene, shot.hour, shot.things)
        assert masks.any(axis=(1, 2)).all() and masks.sum(axis=0).max() <= 2
        assert all(0 < thing.x < SIDE and 0 < thing.y < SIDE for thing in shot.things)


def test_half_of_the_pictures_keep_the_places_of_the_one_before():
    kept = []
    for scene in SCENES:
        listed = list(shots(scene, 30, split="train"))
        for before, now in itertools.pairwise(listed):
            kept.append([(t.x, t.y) for t in before.things] == [(t.x, t.y) for t in now.things])
    assert 0.4 < np.mean(kept) < 0.6


def test_the_same_seed_draws_the_same_pictures_and_splits_share_none():
    once, again = every_shot(), every_shot()
    assert once == again
    places = {tuple((t.x, t.y) for t in shot.things) for shot in once}
    other = {tuple((t.x, t.y) for t in shot.things) for shot in every_shot("arrangements")}
    assert not places & other
    seeds = [{scene.seed for scene in scenes_of(split, 500)} for split in ("train", "scenes")]
    assert not seeds[0] & seeds[1]


def test_answers_are_even_whatever_the_question_says():
    found = defaultdict(Counter)
    for scene in scenes_of("train", 240):
        for shot in shots(scene, 6, split="train"):
            for question in shot.questions():
                found[question.kind][question.answer] += 1
    for kind, values in (("place", len(PLACES)), ("count", 4), ("colour", 4), ("time", HOURS), ("furniture", 4)):
        counts = found[kind]
        assert len(counts) == values and max(counts.values()) < 1.35 * min(counts.values()), (kind, counts)
    assert {scene.piece_paint for scene in scenes_of("train", 4)} == set(PAINTS)


def test_a_guess_from_the_words_alone_gets_what_the_commonest_answer_of_the_training_gets():
    def asked(text, answer):
        return {"kind": "time", "text": text, "answer": answer}

    train = [asked("a?", "1"), asked("a?", "1"), asked("a?", "2"), asked("b?", "3")]
    test = [asked("a?", "1"), asked("a?", "2"), asked("b?", "3"), asked("never asked", "4")]
    assert blind_floor(train, test) == {"time": 0.5, "all": 0.5}


def test_a_blind_model_cannot_learn_the_set(tmp_path):
    floor = write_vqa(tmp_path, train=60, test=24, per_scene=8)
    assert floor["all"] < 0.30 and floor["time"] < 0.2 and floor["place"] < 0.45
    assert floor == io.load(tmp_path / "blind_floor.json")


def test_the_files_are_what_data_set_and_detector_read(tmp_path):
    write_vqa(tmp_path, train=3, test=2, per_scene=2)
    records = io.load(tmp_path / "train.json")
    assert len(records) == 6 * 5 == len({record["id"] for record in records})
    assert all(record["conversations"][0]["value"].startswith("<image>\n") for record in records)
    assert [len(record["questions"]) for record in io.load(tmp_path / "scenes.json")] == [5] * 4
    masks = read_masks(tmp_path)
    assert len(masks) == 6 + 4 + 4
    detector = PrecomputedDetector(file=tmp_path / "objects.jsonl")
    path = tmp_path / records[0]["image"]
    (found,) = detector.detect([read_picture(path)], [path])
    assert np.array_equal(found.pixel_mask(), masks[records[0]["image"]]) and found.names[0] == "clock"


def test_robots_are_told_every_move_about_equally_often(tmp_path):
    assert write_robot(tmp_path, train=60, per_scene=5) == 300
    answers = [record["conversations"][1]["value"] for record in io.load(tmp_path / "train.json")]
    assert all(re.fullmatch(r"\d \d \d \d \w+", answer) for answer in answers)
    moves = Counter(map(move_of, answers))
    assert len(moves) == 5 and max(moves.values()) < 2 * min(moves.values())
    assert any(mask.any() for mask in read_masks(tmp_path).values())
