"""Images in, instances out: preprocessing, devices, weight downloads, overlays."""

from yolact_ros.engine.download import DownloadError, fetch_weights
from yolact_ros.engine.failures import DeviceLostError, DeviceMemoryError
from yolact_ros.engine.overlay import draw_overlay
from yolact_ros.engine.preprocess import preprocess
from yolact_ros.engine.segmenter import Segmenter
from yolact_ros.engine.submitted import StageTimes, SubmittedBatch
from yolact_ros.image_files import Image

__all__ = [
    "DeviceLostError",
    "DeviceMemoryError",
    "DownloadError",
    "Image",
    "Segmenter",
    "StageTimes",
    "SubmittedBatch",
    "draw_overlay",
    "fetch_weights",
    "preprocess",
]
