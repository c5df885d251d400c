"""The parts of `llava.scene.token_cache`: keys, values, tiers, similarity, costs. None of them knows a model."""
