"""Documented path of frame masks and fast/slow sampling; the code is in `llava.video`."""

from llava.video.fast_slow import VideoFrameSampler
from llava.video.frame_masks import FrameLevelMaskGenerator, create_frame_position_ids, visualize_mask

__all__ = ["FrameLevelMaskGenerator", "VideoFrameSampler", "create_frame_position_ids", "visualize_mask"]
