"""From raw predictions to instances: box decoding, NMS, mask assembly, re-scoring."""

from yolact_ros.detection.detections import Detections, detect
from yolact_ros.detection.instances import Instances, make_instances
from yolact_ros.detection.regions import MaskRegions, PackedMasks, SmallMasks
from yolact_ros.detection.settings import DetectionSettings, NmsMethod

__all__ = [
    "DetectionSettings",
    "Detections",
    "Instances",
    "MaskRegions",
    "NmsMethod",
    "PackedMasks",
    "SmallMasks",
    "detect",
    "make_instances",
]
