"""The parts of `playground.benchmarks.scene_cache_ttft`, one duty per file."""
