"""One episode computed whole is every decision computed by itself on what it may see, packed with others or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llava.constants import IGNORE_INDEX
from llava.model.attention import may_attend, position_ids_of, predecessor_index
from tests.numerics.models import IMAGE, Episode, pictures, tiny_model, worst, worst_gradient

TOLERANCE = 1e-5  # measured worst: 2.1e-6 (logits), 6.5e-6 (gradients, by the largest of a tensor)
EOT = 3


class Decisions:
    """An episode of pictures, each with an answer branch and, at every second one, a grounding question as another."""

    def __init__(self, num_pictures: int, tokens_per_image: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        draw = lambda n: torch.randint(4, 50, (n,), generator=generator).tolist()  # noqa: E731
        self.images = pictures(num_pictures, seed)
        self.episode = Episode().add([1, *draw(5)])
        self.asides: list[tuple[list[int], list[int], list[int]]] = []  # (trunk so far, question, answer)
        trunk, branch = list(self.episode.ids), 0
        for step in range(num_pictures):
            trunk = [*trunk, *[IMAGE] * tokens_per_image]
            self.episode.add([IMAGE] * tokens_per_image)
            asides = [([], [*draw(1 + step % 2), EOT])] + ([(draw(3), [*draw(2), EOT])] if step % 2 else [])
            for question, answer in asides:
                branch += 1
                self.episode.add(question, branch).add(answer, branch, supervised=True)
                self.asides.append((list(trunk), question, answer))
            text = draw(step % 3)  # some text of the trunk between answers and the next picture
            trunk += text
            self.episode.add(text)

    def one_by_one(self, model: Any) -> tuple[Tensor, Tensor]:
        """Logits that predict each answer token, and the summed loss, from plain sequences without any mask."""
        logits, loss = [], torch.zeros(())
        for trunk, question, answer in self.asides:
            ids = torch.tensor([trunk + question + answer])
            num_pictures = int((ids == IMAGE).sum()) // model.tokens_per_image
            output = model(input_ids=ids, images=self.images[:num_pictures])
            rows = output.logits[0, -len(answer) - 1 : -1]
            logits.append(rows)
            loss = loss + torch.nn.functional.cross_entropy(rows, torch.tensor(answer), reduction="sum")
        return torch.cat(logits), loss


def logits_of_answers(model: Any, batch: dict[str, Tensor], logits: Tensor) -> Tensor:
    segments = batch.get("segment_ids", torch.zeros_like(batch["input_ids"]))
    predecessor = predecessor_index(segments, batch["branch_ids"])
    supervised = batch["labels"] != IGNORE_INDEX
    rows = torch.arange(len(logits))[:, None].expand_as(predecessor)
    return logits[rows[supervised], predecessor[supervised]]


def packed(episodes: list[Decisions], padding: int) -> dict[str, Tensor]:
    parts = [episode.episode.tensors() for episode in episodes]
    batch = {key: torch.cat([part[key] for part in parts], dim=1) for key in parts[0]}
    segments = [torch.full_like(part["input_ids"], index) for index, part in enumerate(parts)]
    batch["segment_ids"] = torch.cat(segments, dim=1)
    fill = {"input_ids": 0, "labels": IGNORE_INDEX, "branch_ids": 0, "segment_ids": -1}
    batch = {key: torch.nn.functional.pad(row, (0, padding), value=fill[key]) for key, row in batch.items()}
    return {**batch, "images": torch.cat([episode.images for episode in episodes])}


@pytest.mark.parametrize("llm", ["llama", "qwen3"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_an_episode_computed_whole_is_its_decisions_computed_apart(llm: str, attn: str):
    model = tiny_model(llm, attn=attn)
    decisions = Decisions(5, model.tokens_per_image, seed=1)
    batch = {**decisions.episode.tensors(), "images": decisions.images}
    expected, expected_loss = decisions.one_by_one(model)
    with torch.no_grad():
        output = model(**batch, num_items_in_batch=1)
    assert worst(logits_of_answers(model, batch, output.logits), expected) < TOLERANCE
    assert output.loss.item() == pytest.approx(expected_loss.item(), abs=1e-4)


def test_without_the_mask_the_numbers_differ_by_far_more_than_the_tolerance():
    model = tiny_model()
    decisions = Decisions(5, model.tokens_per_image, seed=1)
    batch = {**decisions.episode.tensors(), "images": decisions.images}
    with torch.no_grad():
        seeing_answers = model(input_ids=batch["input_ids"], images=batch["images"]).logits
        expected, _ = decisions.one_by_one(model)
    assert worst(logits_of_answers(model, batch, seeing_answers), expected) > 1e-1


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_packed_episodes_are_the_episodes_alone(attn: str):
    model = tiny_model(attn=attn)
    episodes = [Decisions(count, model.tokens_per_image, seed) for seed, count in enumerate((3, 5, 1, 2))]
    batch = packed(episodes, padding=7)
    with torch.no_grad():
        output = model(**batch)
        expected = torch.cat([episode.one_by_one(model)[0] for episode in episodes])
    assert worst(logits_of_answers(model, batch, output.logits), expected) < TOLERANCE
    assert torch.isfinite(output.logits).all()


def test_padded_rows_of_episodes_are_the_episodes_alone():
    model = tiny_model()
    episodes = [Decisions(count, model.tokens_per_image, seed) for seed, count in enumerate((3, 5))]
    parts = [episode.episode.tensors() for episode in episodes]
    length = max(part["input_ids"].shape[1] for part in parts)
    fill = {"input_ids": 0, "labels": IGNORE_INDEX, "branch_ids": 0}
    batch = {
        key: torch.cat(
            [torch.nn.functional.pad(part[key], (0, length - part[key].shape[1]), value=value) for part in parts]
        )
        for key, value in fill.items()
    }
    lengths = torch.tensor([part["input_ids"].shape[1] for part in parts])
    batch["attention_mask"] = torch.arange(length)[None] < lengths[:, None]
    images = torch.cat([episode.images for episode in episodes])
    with torch.no_grad():
        output = model(**batch, images=images)
        expected = torch.cat([episode.one_by_one(model)[0] for episode in episodes])
    assert worst(logits_of_answers(model, batch, output.logits), expected) < TOLERANCE
    assert torch.isfinite(output.logits).all()


def test_training_on_packed_episodes_gives_the_gradients_of_the_decisions_apart():
    model = tiny_model().train()
    episodes = [Decisions(count, model.tokens_per_image, seed) for seed, count in enumerate((2, 3))]
    losses = [episode.one_by_one(model)[1] for episode in episodes]
    torch.stack(losses).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    output = model(**packed(episodes, padding=3), num_items_in_batch=1)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(sum(loss.item() for loss in losses), rel=1e-6)
    for name, parameter in model.named_parameters():
        if name in expected:
            assert worst_gradient(parameter.grad, expected[name]) < 5 * TOLERANCE


def test_positions_go_on_as_if_an_answer_were_not_there():
    branches = torch.tensor([[0, 0, 1, 1, 2, 2, 2, 0, 0, 3]])
    segments = torch.zeros_like(branches)
    assert position_ids_of(segments, branches).tolist() == [[0, 1, 2, 3, 2, 3, 4, 2, 3, 4]]


def test_a_token_is_predicted_by_the_last_one_that_it_may_see():
    branches = torch.tensor([[0, 0, 1, 1, 2, 2, 0, 0, 0]])
    segments = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 1, 1]])
    assert predecessor_index(segments, branches).tolist() == [[-1, 0, 1, 2, 1, 4, 1, -1, 7]]


@st.composite
def layouts(draw: Any) -> tuple[Tensor, Tensor]:
    """A row of segments (padding last), each with a trunk and branches numbered in order."""
    segments: list[int] = []
    branches: list[int] = []
    for segment in range(draw(st.integers(1, 3))):
        branch = 0
        for length, is_branch in draw(st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=5)):
            branch += is_branch
            segments += [segment] * length
            branches += [branch if is_branch else 0] * length
    padding = draw(st.integers(0, 2))
    return torch.tensor([segments + [-1] * padding]), torch.tensor([branches + [0] * padding])


@settings(deadline=None, max_examples=60)
@given(layout=layouts())
def test_the_mask_is_the_sentence_that_defines_it(layout: tuple[Tensor, Tensor]):
    (segments,), (branches,) = layout[0].tolist(), layout[1].tolist()
    mask = may_attend(*layout)[0].tolist()
    positions = position_ids_of(*layout)[0].tolist()
    predecessors = predecessor_index(*layout)[0].tolist()
    for q in range(len(segments)):
        seen = [k for k in range(q + 1) if segments[k] == segments[q] and branches[k] in (0, branches[q])]
        assert [k for k in range(len(segments)) if mask[q][k]] == seen
        if segments[q] >= 0:
            assert positions[q] == len(seen) - 1
            assert predecessors[q] == (seen[-2] if len(seen) > 1 else -1)
