"""Special ids and strings shared by every layer. Imports nothing."""

IGNORE_INDEX = -100
"""Label of a position that is not trained (the value PyTorch's cross-entropy ignores)."""

IMAGE_TOKEN_INDEX = -200
"""The LLaVA family's placeholder id of a picture; accepted at every door and mapped to the tokenizer's `<image>` id."""

DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_VIDEO_TOKEN = "<vila/video>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
IMAGE_PLACEHOLDER = "<image-placeholder>"
SENTINEL_TOKEN = "<vila/sentinel>"
