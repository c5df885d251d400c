"""Whether the next-frame loss helps a model that walks: arms, plan, measurements, statistics, page."""
