"""Documented path of the next-frame loss; the code is in `llava.model.autoregressive_reconstruction`."""

from llava.model.autoregressive_reconstruction import (
    AutoregressiveReconstructionModule,
    FrozenVisionEmbeddingProcessor,
    ParallelAutoregressivePredictor,
    create_autoregressive_reconstruction_module,
)

__all__ = [
    "AutoregressiveReconstructionModule",
    "FrozenVisionEmbeddingProcessor",
    "ParallelAutoregressivePredictor",
    "create_autoregressive_reconstruction_module",
]
