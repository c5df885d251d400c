"""What the cost of the next-frame loss is measured on: shapes, a batch with one clip, the arms that learn from it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from llava.batch import MultimodalBatch, Sample
from llava.constants import IGNORE_INDEX
from llava.data.clips import make_clip
from llava.data.collate import DataCollator
from llava.model.builder import build_model
from llava.video.frame_masks import not_newer, within_window


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the model and of one sample: text, then frames of pictures, then more text that ends in an answer.

    Attributes:
        tower_layers: one more than are run, as NaVILA reads the last but one.
        grid: patches per side of a picture; the projector makes one token of 2 x 2.
        heads_of_loss: attention heads of every predictor.
    """

    name: str
    width: int
    feed_forward: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tower_width: int
    tower_feed_forward: int
    tower_layers: int
    tower_heads: int
    patch_size: int
    grid: int
    heads_of_loss: int
    text: int
    answer: int
    frames: int = 8

    @property
    def patches(self) -> int:
        return self.grid**2

    @property
    def tokens_per_frame(self) -> int:
        return (-(-self.grid // 2)) ** 2

    @property
    def sequence(self) -> int:
        return self.frames * self.tokens_per_frame + self.text

    def at(self, frames: int, grid: int) -> Shape:
        return replace(self, frames=frames, grid=grid)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


SHAPES = {
    "navila-8b": Shape(
        name="navila-8b", width=4096, feed_forward=14336, layers=32, heads=32, key_value_heads=8, vocabulary=128_256,
        tower_width=1152, tower_feed_forward=4304, tower_layers=27, tower_heads=16, patch_size=14, grid=27,
        heads_of_loss=8, text=168, answer=20,
    ),
    "sixteenth": Shape(
        name="sixteenth", width=256, feed_forward=896, layers=32, heads=2, key_value_heads=1, vocabulary=8016,
        tower_width=72, tower_feed_forward=269, tower_layers=27, tower_heads=1, patch_size=4, grid=13,
        heads_of_loss=1, text=42, answer=5,
    ),
    "tiny": Shape(
        name="tiny", width=32, feed_forward=64, layers=2, heads=2, key_value_heads=1, vocabulary=64,
        tower_width=16, tower_feed_forward=32, tower_layers=3, tower_heads=2, patch_size=4, grid=5,
        heads_of_loss=2, text=8, answer=3, frames=3,
    ),
}  # fmt: skip
"""`sixteenth`: NaVILA-8B with every width / 16 (heads keep theirs), a quarter of the tokens, and all layers."""

ARMS = ("sft", "default", "documented", "straightforward")
PRESETS = ("default", "documented")


def build(shape: Shape, *, tuned_tower: bool, device: str, dtype: torch.dtype) -> Any:
    """A model of random weights, in training, the language model and the projector trainable."""
    heads = {"num_attention_heads": shape.heads, "num_key_value_heads": shape.key_value_heads}
    language_model = {
        "model_type": "llama", "vocab_size": shape.vocabulary, "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward, "num_hidden_layers": shape.layers, **heads,
        "max_position_embeddings": max(8192, shape.sequence),
    }  # fmt: skip
    tower = {
        "model_type": "siglip_vision_model", "image_size": shape.grid * shape.patch_size,
        "patch_size": shape.patch_size, "hidden_size": shape.tower_width,
        "intermediate_size": shape.tower_feed_forward, "num_hidden_layers": shape.tower_layers,
        "num_attention_heads": shape.tower_heads,
    }  # fmt: skip
    parts = {"llm_cfg": language_model, "vision_tower_cfg": tower, "mm_projector_cfg": "mlp_downsample"}
    torch.manual_seed(0)
    with torch.device(device):
        model = build_model({**parts, "image_token_id": shape.vocabulary - 1}, dtype=dtype)
    model.set_trainable(language_model=True, vision_tower=tuned_tower, mm_projector=True)
    return model.train()


def make_batch(shape: Shape, device: str) -> MultimodalBatch:
    """One sample. Pictures and tokens go to the device, clips stay on the host, as in training."""
    draw = torch.Generator().manual_seed(0)
    text = torch.randint(3, shape.vocabulary - 1, (shape.text,), generator=draw)
    owner = torch.arange(shape.frames).repeat_interleave(shape.tokens_per_frame)
    slots = torch.full_like(owner, shape.vocabulary - 1)
    before = 4
    input_ids = torch.cat([text[:before], slots, text[before:]])
    labels = input_ids.clone()
    labels[: -shape.answer] = IGNORE_INDEX
    frame_ids = torch.cat([torch.full((before,), -1), owner, torch.full((shape.text - before,), shape.frames - 1)])
    side = shape.grid * shape.patch_size
    pictures = torch.randint(0, 256, (shape.frames, 3, side, side), dtype=torch.uint8, generator=draw)
    clip = make_clip(range(shape.frames), [float(t) for t in range(shape.frames)])
    assert clip is not None
    sample = Sample(input_ids=input_ids, labels=labels, frame_ids=frame_ids, images=pictures, clip=clip)
    collate = DataCollator(pad_token_id=0, max_length=shape.sequence, image_token_id=shape.vocabulary - 1)
    batch = collate([sample])
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    return MultimodalBatch(**moved)  # pyright: ignore[reportArgumentType]


class StraightforwardLoss(nn.Module):
    """The described objective from torch's own parts: what a first version does.

    A copy of the tower encodes every frame again. Tokens of frames 0..T-2, all patches, in language width, attend to
    the language model's states, then to each other in `nn.TransformerDecoder`, under float masks over all tokens.
    """

    def __init__(self, tower: Any, width: int, num_heads: int, *, num_layers: int = 3, num_hist: int = 3) -> None:
        super().__init__()
        teacher = copy.deepcopy(tower).requires_grad_(False).eval()
        object.__setattr__(self, "teacher", teacher)  # not among the parameters
        self.num_hist = num_hist
        self.inwards = nn.Linear(tower.hidden_size, width)
        self.fusion = nn.MultiheadAttention(width, num_heads, batch_first=True)
        layer = nn.TransformerDecoderLayer(width, num_heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, num_layers)
        self.outwards = nn.Linear(width, tower.hidden_size)

    def forward(self, states: Float[Tensor, "1 s d"], frames: Tensor, frame_end_positions: Tensor) -> Float[Tensor, ""]:
        """frames: [T, 3, H, W] of one clip; frame_end_positions: [1, T]."""
        with torch.no_grad():
            teacher: Any = self.teacher
            features = teacher(frames)  # [T, P, D]
        num_patches = features.shape[1]
        inputs, targets = features[:-1].flatten(0, 1)[None], features[1:].flatten(0, 1)[None]
        frame_of = torch.arange(len(frames) - 1, device=frames.device).repeat_interleave(num_patches)
        tokens = self.inwards(inputs)
        ends = frame_end_positions[0].to(frames.device)[frame_of]
        column = torch.arange(states.shape[1], device=frames.device)
        seen = self._as_float(column[None, :] <= ends[:, None], tokens.dtype)  # [T*P, S]
        tokens = tokens + self.fusion(tokens, states, states, attn_mask=seen, need_weights=False)[0]
        times = frame_of[None].float()
        mask = self._as_float((not_newer(times) & within_window(times, self.num_hist))[0], tokens.dtype)  # [T*P, T*P]
        tokens = self.decoder(tokens, tokens, tgt_mask=mask, memory_mask=mask)
        return F.mse_loss(self.outwards(tokens).float(), targets.float())

    @staticmethod
    def _as_float(may_attend: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.zeros(may_attend.shape, dtype=dtype, device=may_attend.device).masked_fill(
            ~may_attend, float("-inf")
        )


class Arm:
    """One way to spend a training step on a model that all arms share; what it adds has its own optimizer."""

    def __init__(self, name: str, model: Any, optimizer: torch.optim.Optimizer, shape: Shape) -> None:
        self.name, self.model = name, model
        self.extra = self._make_extra(shape)
        self.optimizers = [optimizer] if self.extra is None else [optimizer, _adamw(self.extra.parameters(), 1e-4)]

    def _make_extra(self, shape: Shape) -> Any:
        if self.name == "sft":
            return None
        if self.name == "straightforward":
            like = next(self.model.mm_projector.parameters())
            with torch.random.fork_rng(devices=[]):
                loss = StraightforwardLoss(self.model.vision_tower, shape.width, shape.heads_of_loss)
            return loss.to(like.device, like.dtype).train()
        self.model.autoregressive_reconstruction = None
        settings = {"preset": self.name, "embedding_dim": None, "num_heads": shape.heads_of_loss}
        module = self.model.initialize_continuous_autoregressive_modules(settings)
        self.model.autoregressive_reconstruction = None
        return module.train()

    @property
    def teacher(self) -> Any:
        """The tower that gives targets; None where nothing is learned from it."""
        return None if self.extra is None else getattr(self.extra.teacher, "tower", self.extra.teacher)

    def losses(self, batch: MultimodalBatch) -> tuple[Tensor, Tensor]:
        """(loss to be minimised, language loss)."""
        inputs = {name: value for name, value in batch.items() if name != "sample_ids"}
        self.model.autoregressive_reconstruction = self.extra if self.name in PRESETS else None
        if self.name != "straightforward":
            output = self.model(**inputs)
            return output.loss, output.loss_terms["main_loss"]
        with last_states(self.model) as states:
            output = self.model(**inputs)
        ends = batch["clips"]["frame_end_positions"]
        return output.loss + 0.1 * self.extra(states[0], batch["images"], ends), output.loss_terms["main_loss"]

    def update(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def base_optimizer(model: Any) -> torch.optim.Optimizer:
    """A step of rate 0 costs as much as any, and leaves the same weights to the arm that comes next."""
    return _adamw(model.parameters(), 0.0)


def _adamw(weights: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """Fused: no copies of all weights at a time, which would hide the memory of everything else."""
    return torch.optim.AdamW([p for p in weights if p.requires_grad], lr=rate, fused=True)


@contextmanager
def last_states(model: Any) -> Iterator[list[Tensor]]:
    """What the language model hands to its head while the context lasts."""
    seen: list[Tensor] = []
    hook = model.llm.get_decoder().register_forward_hook(lambda _m, _i, output: seen.append(output.last_hidden_state))
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def forwards_of(modules: list[nn.Module]) -> Iterator[list[int]]:
    """Forward passes of each module while the context lasts."""
    counts = [0] * len(modules)

    def counter(index: int) -> Any:
        def count(*_: Any) -> None:
            counts[index] += 1

        return count

    hooks = [module.register_forward_pre_hook(counter(index)) for index, module in enumerate(modules)]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()
