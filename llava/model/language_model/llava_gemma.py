"""Gemma 1, 2 and 3 (text).

Their table of embeddings multiplies each row by sqrt(width); visual tokens are written behind that table and are not
multiplied, as in transformers' own PaliGemma and Gemma 3. Gemma 2 caps its attention scores and runs the `eager` kernel
unless another one that can cap is asked for. Logits are capped in `LlavaCausalLM.to_logits`.
"""

from __future__ import annotations

from llava.model.configuration_llava import LlavaGemmaConfig
from llava.model.language_model import LANGUAGE_MODELS
from llava.model.language_model.base import LlavaCausalLM


@LANGUAGE_MODELS.register("gemma", "gemma2", "gemma3_text")
class LlavaGemmaModel(LlavaCausalLM):
    config_class = LlavaGemmaConfig
