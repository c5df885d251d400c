"""Worlds to navigate in: the embedded one (NumPy only), Habitat and MiniWorld behind one protocol."""
