"""Models that read background and objects apart: their policy walks as plain generation does."""

from typing import Any

import numpy as np
import pytest
import torch

from llava.eval.make_policy import make_policy
from llava.eval.model_side import ModelSide
from llava.eval.navigation_loop import run_batch
from llava.eval.navila_policy import NavilaPolicy
from llava.eval.policies import Decision, EpisodeView, Policy
from llava.eval.split_navila_policy import SplitNavilaPolicy
from llava.mm_utils import to_uint8_tensor
from llava.navigation.actions import DEFAULT_FALLBACK, decide
from llava.navigation.prompt import NavilaFormat
from llava.scene.detections import Detections
from llava.scene.patch_mask import patch_masks

WORDS = ["Go to the red ball.", "Walk to the blue box and stop next to it, then wait there.", "Stop."]
LONGEST = 5


@pytest.fixture(scope="module")
def split_model(toys):
    """Pictures of 16 pixels, 2 x 2 patches; a picture has 4 tokens and 4 separators."""
    model = toys.navila()
    model.initialize_scene_split({})
    return model


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (8, 3, 16, 16, 3), dtype=np.uint8)  # step, episode, picture


def corner(row: int, column: int) -> np.ndarray:
    """A pixel mask of one of the four patches."""
    mask = np.zeros((16, 16), dtype=bool)
    mask[row * 8 + 2 : row * 8 + 6, column * 8 + 2 : column * 8 + 6] = True
    return mask


def plain_answer(model: Any, view: EpisodeView, masks: list[np.ndarray] | None) -> str:
    """The model's own `generate`, one prompt at a time, without a cache."""
    prompt = NavilaFormat(num_frames=4)
    shown = prompt.frame_indices(len(view.frames))
    black = np.zeros_like(view.frames[0])
    images = torch.stack([to_uint8_tensor(view.frames[i] if i >= 0 else black, model.visual_spec) for i in shown])
    rule = model.scene_split.config.patch_rule(patch_size=8, cell=1)
    nothing = np.zeros((16, 16), dtype=bool)
    given = [masks[i] if masks is not None and i >= 0 else nothing for i in shown]
    patches = [patch_masks(mask, model.visual_spec, rule)[0].patches.flatten() for mask in given]
    out = model.generate(
        ModelSide(model).question_ids(prompt.question(view.instruction))[None], images, do_sample=False,
        max_new_tokens=LONGEST, object_patches=torch.from_numpy(np.stack(patches)),
    )  # fmt: skip
    return model.tokenizer.decode(out[0], skip_special_tokens=True).strip()


class PlainPolicy:
    """Asks `plain_answer` for every episode by itself."""

    name = "plain"
    needs_every_frame = True

    def __init__(self, model: Any) -> None:
        self.model, self.prompt = model, NavilaFormat(num_frames=4)

    def act(self, views):
        texts = [plain_answer(self.model, view, view.object_masks) for view in views]
        readings = [decide(text, self.prompt.action_format, DEFAULT_FALLBACK) for text in texts]
        return [Decision(action=r.action, text=text) for r, text in zip(readings, texts, strict=True)]

    def finish(self, key):
        pass

    def describe(self):
        return {}


def views_of(count: int = 3) -> list[EpisodeView]:
    return [EpisodeView(key=f"e{i}", instruction=WORDS[i], object_masks=[]) for i in range(count)]


def grow(views: list[EpisodeView], pictures: np.ndarray, step: int) -> None:
    for row, view in enumerate(views):
        view.frames.append(pictures[step, row])
        assert view.object_masks is not None
        view.object_masks.append(corner((step + row) % 2, step % 2))


@pytest.mark.parametrize("kept_bytes", [0, 2**24])
def test_answers_equal_those_of_plain_generation(split_model, pictures, kept_bytes):
    side = ModelSide(split_model)
    policy = SplitNavilaPolicy(side, NavilaFormat(num_frames=4), max_new_tokens=LONGEST, kept_bytes=kept_bytes)
    views, texts, blind, kept = views_of(), [], [], []
    for step in range(6):
        grow(views, pictures, step)
        if step in (0, 2, 3, 5):
            decided = policy.act(views)
            assert [each.text for each in decided] == [plain_answer(split_model, v, v.object_masks) for v in views]
            texts += [each.text for each in decided]
            kept += [each.kept_tokens for each in decided]
            blind += [plain_answer(split_model, view, None) for view in views]
    assert texts != blind  # the masks are read
    assert any(kept) == bool(kept_bytes)


def test_a_walk_is_that_of_plain_generation_alone_and_in_a_batch(split_model, episodes, batched):
    policy = make_policy(split_model, max_new_tokens=LONGEST)
    assert isinstance(policy, SplitNavilaPolicy) and isinstance(policy, Policy)
    together = run_batch(batched(3), policy, episodes[:3], max_steps=6)
    plain = run_batch(batched(3), PlainPolicy(split_model), episodes[:3], max_steps=6)
    (alone,) = run_batch(batched(1), make_policy(split_model, max_new_tokens=LONGEST), episodes[:1], max_steps=6)
    for walk, expected in zip([*together, alone], [*plain, plain[0]], strict=True):
        assert walk.actions == expected.actions
        assert [d.text for d in walk.decisions] == [d.text for d in expected.decisions]
    assert not policy.objects._episodes and not policy._question_ids


@pytest.mark.parametrize("lanes", ["batched", "one_by_one"])
def test_the_loop_hands_over_the_true_instances_of_every_frame(lanes, episodes, request, brightness):
    seen = []

    class Watching(brightness):
        def act(self, views):
            seen.extend((len(view.frames), len(view.object_masks), view.object_masks[-1].shape) for view in views)
            return super().act(views)

    run_batch(request.getfixturevalue(lanes)(2), Watching(), episodes[:2], max_steps=6)
    assert len(seen) > 2
    assert all(frames == masks and shape == (16, 16) for frames, masks, shape in seen)


class UpperHalf:
    """A detector that finds the upper half of everything, and counts the pictures it is shown."""

    def __init__(self):
        self.shown = 0

    def detect(self, pictures, sources=None):
        self.shown += len(pictures)
        return [Detections.of(picture.shape[0], picture.shape[1], [(1, 1, 15, 7)]) for picture in pictures]


def test_a_detector_looks_at_every_shown_frame_once(split_model, pictures):
    detector = UpperHalf()
    policy = SplitNavilaPolicy(
        ModelSide(split_model), NavilaFormat(num_frames=4), max_new_tokens=LONGEST, detector=detector
    )
    view = EpisodeView(key="e", instruction=WORDS[0])
    mask = np.zeros((16, 16), dtype=bool)
    mask[1:7, 1:15] = True
    for step in range(6):
        view.frames.append(pictures[step, 0])
        (decision,) = policy.act([view])
        assert decision.text == plain_answer(split_model, view, [mask] * len(view.frames))
    assert detector.shown == 6
    assert policy.describe()["objects"] == "detector UpperHalf"


def test_a_robot_that_stands_still_encodes_no_background_again(split_model, pictures):
    policy = make_policy(split_model, max_new_tokens=1)
    view, masks, costs = EpisodeView(key="e", instruction=WORDS[0]), [], []
    view.object_masks = masks
    for _ in range(5):
        view.frames.append(pictures[0, 0])
        masks.append(corner(0, 0))
        (decision,) = policy.act([view])
        costs.append((decision.frames_encoded, decision.frames_reused))
    assert costs[0] == (1, 0)
    assert all(encoded == 0 and reused >= 1 for encoded, reused in costs[1:])


def test_without_masks_and_detector_the_remedies_are_named(split_model, pictures):
    view = EpisodeView(key="e", instruction=WORDS[0], frames=[pictures[0, 0]])
    with pytest.raises(ValueError, match=r"the simulator tells no instances; set scene_split\.detector"):
        make_policy(split_model).act([view])
    view.object_masks = []
    with pytest.raises(ValueError, match="0 object_masks for 1 frames"):
        make_policy(split_model).act([view])


@pytest.mark.parametrize("detector", ["precomputed", "motion"])
def test_detectors_that_cannot_look_at_one_frame_leave_it_to_the_simulator(toys, detector):
    model = toys.navila()
    model.initialize_scene_split({"detector": detector})
    assert make_policy(model).describe()["objects"] == "the simulator's true instances"


def test_the_growing_sequence_refuses_split_pictures_and_says_why(toys):
    model = toys.streaming()
    model.initialize_scene_split({})
    with pytest.raises(ValueError, match="growing sequence counts positions token by token"):
        make_policy(model)


def test_the_policy_of_whole_pictures_names_the_other_one(split_model):
    with pytest.raises(ValueError, match="SplitNavilaPolicy"):
        NavilaPolicy(ModelSide(split_model), NavilaFormat(num_frames=4))


def test_a_single_decision_can_be_sampled(split_model, pictures):
    detector = UpperHalf()
    policy = SplitNavilaPolicy(ModelSide(split_model), NavilaFormat(num_frames=4), detector=detector)
    decision = policy.sample(WORDS[0], list(pictures[:3, 0]), do_sample=False, num_beams=2, max_new_tokens=LONGEST)
    assert decision.tokens > LONGEST and detector.shown == 3
    assert not policy._question_ids
