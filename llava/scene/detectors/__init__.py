"""One file per detector; `scene.detector.build_detector` imports them."""
