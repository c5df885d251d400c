"""One file per record layout, and the table that gives each its `type` in registry files."""

from llava.data.base import Dataset
from llava.data.dataset_impl.clips import ClipsDataset
from llava.data.dataset_impl.envdrop import EnvDropDataset
from llava.data.dataset_impl.llava import LLaVADataset
from llava.data.dataset_impl.scanqa import ScanQADataset
from llava.data.dataset_impl.streaming import StreamingDataset
from llava.data.dataset_impl.video import VideoDataset
from llava.data.dataset_impl.vlnce import VLNCEDataset
from llava.utils.registry import Registry

__all__ = [
    "DATASETS",
    "ClipsDataset",
    "EnvDropDataset",
    "LLaVADataset",
    "ScanQADataset",
    "StreamingDataset",
    "VLNCEDataset",
    "VideoDataset",
]

DATASETS: Registry[type[Dataset]] = Registry("data set type")
"""`type` of a registry entry -> class. A row is called as `row(name, context, **paths)`."""

DATASETS.register("llava", "sharegpt", "torch")(LLaVADataset)
DATASETS.register("video", "video_chatgpt", "sharegpt_video")(VideoDataset)
DATASETS.register("vlnce")(VLNCEDataset)
DATASETS.register("streaming")(StreamingDataset)
DATASETS.register("envdrop")(EnvDropDataset)
DATASETS.register("scanqa")(ScanQADataset)
DATASETS.register("clips")(ClipsDataset)
