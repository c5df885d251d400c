"""A model, its peer and a prompt: the requests of the benchmark, and what has to be true before anything is timed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava.scene.token_cache import BackgroundTokenCache, CacheConfig, SimilarityConfig
from playground.benchmarks.hf_peer import build_ours
from playground.benchmarks.scene_cache.peer import GREEDY, PeerBench
from playground.benchmarks.scene_cache.pictures import Picture, StillCamera
from playground.benchmarks.scene_cache.samples import Sample
from playground.benchmarks.scene_cache.shapes import NOISE, QUESTION_TOKENS, SYSTEM_TOKENS
from playground.benchmarks.workload import Size


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where it runs.

    Attributes:
        dtype: by its name in torch.
        detector_ms: added to every run of the detector.
    """

    device: str = "cpu"
    dtype: str = "float32"
    cache_mib: int = 2048
    detector_ms: float = 0.0


class Bench:
    """The prompt: system words, pictures, question."""

    def __init__(self, size: Size, num_frames: int, machine: Machine) -> None:
        self.size, self.num_frames, self.machine = size, num_frames, machine
        torch.manual_seed(0)
        model = build_ours(size).to(machine.device, getattr(torch, machine.dtype)).eval()
        model.initialize_scene_split({"separators": False, "background_per": "clip" if num_frames > 1 else "picture"})
        self.model, self.split = model, model.scene_split
        draw = torch.Generator().manual_seed(1)
        words = torch.randint(3, size.vocabulary - 2, (SYSTEM_TOKENS + QUESTION_TOKENS,), generator=draw)
        slots = torch.full((num_frames,), model.config.image_token_id)
        parts = [words[:SYSTEM_TOKENS], slots, words[SYSTEM_TOKENS:]]
        self.input_ids = torch.cat(parts)[None].to(machine.device)
        self.peer = PeerBench(model, self.input_ids)

    def camera(self, share: float, seed: int) -> StillCamera:
        return StillCamera(self.size.image_size, self.size.patch_size, share, seed)

    def frames(self, picture: Picture) -> Tensor:
        """uint8 [frames, 3, H, W] on the host: where pictures come from; later frames show the same."""
        return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].repeat(self.num_frames, 1, 1, 1)

    def masks(self, camera: StillCamera) -> Tensor:
        """bool [frames, grid, grid]: the objects of that camera's pictures."""
        grid = camera.side // camera.patch
        mask = torch.zeros(self.num_frames, grid, grid, dtype=torch.bool)
        mask[:, grid - camera.object_rows :] = True
        return mask

    def cache(self, *, guarded: bool = False) -> BackgroundTokenCache:
        similarity = SimilarityConfig(noise=NOISE, max_stale_fraction=0.3) if guarded else None
        num_bytes = self.machine.cache_mib * 2**20
        return BackgroundTokenCache(
            CacheConfig(device_bytes=num_bytes, device=self.machine.device, similarity=similarity)
        )

    def ask(self, frames: Tensor, *, tokens: int = 1, **how: Any) -> Any:
        pixels = frames.to(self.machine.device)
        return self.model.generate(
            self.input_ids, pixels, return_provenance=True, max_new_tokens=tokens, **GREEDY, **how
        )

    @contextmanager
    def whole(self) -> Iterator[None]:
        """The model without its split."""
        self.model.scene_split = None
        try:
            yield
        finally:
            self.model.scene_split = self.split

    def full(self, frames: Tensor) -> Sample:
        with self.whole():
            return Sample.of(self.ask(frames).report)

    def splitted(self, frames: Tensor, camera: StillCamera, cache: Any = None, **how: Any) -> Sample:
        detector = SlowedDetector(camera.detector(), self.machine.detector_ms)
        how["picture_ids"] = ["camera", *[None] * (self.num_frames - 1)]  # says which entry is compared first
        return Sample.of(self.ask(frames, detector=detector, background_cache=cache, **how).report)


class SlowedDetector:
    """A detector that takes longer, to stand for one that runs on this machine in the given time."""

    def __init__(self, detector: Any, extra_ms: float) -> None:
        self.detector, self.extra_ms, self.sees_clips = detector, extra_ms, False

    def detect(self, pictures: Sequence[Picture], sources: Any = None) -> Any:
        time.sleep(self.extra_ms / 1000 * len(pictures))
        return [found for picture in pictures for found in self.detector.detect([picture], None)]


def check(bench: Bench) -> None:
    """
    Raises:
        RuntimeError: a hit answers otherwise than the split without a cache, or the peer otherwise than our full path.
    """
    camera, cache = bench.camera(0.5, 99), bench.cache()
    first, second = (bench.frames(camera.picture(seed)) for seed in (0, 1))
    for frames, expected in ((first, "miss"), (first, "exact_kv"), (second, "exact_kv")):
        hit = bench.ask(frames, tokens=8, detector=camera.detector(), background_cache=cache)
        plain = bench.ask(frames, tokens=8, object_patches=bench.masks(camera))
        found = hit.report.pictures[0].background
        if not torch.equal(hit.output, plain.output) or found != expected:
            raise RuntimeError(f"a hit ({found}, expected {expected}) answers otherwise than the split without a cache")
    with bench.whole():
        whole = bench.ask(first, tokens=8).output
    for prefix in (None, bench.peer.prefix(first)):
        if not torch.equal(bench.peer.ask(first, tokens=8, prefix=prefix)[0], whole):
            raise RuntimeError("transformers' LLaVA answers otherwise than our full path; repair that first")
