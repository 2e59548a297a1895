"""Data sets: reading and checking them. Imports nothing of ours."""

from yolact_ros.data.check import Problem, Report, check
from yolact_ros.data.coco import (
    Annotation,
    DataError,
    DataSource,
    ImageRecord,
    class_names,
    decode_mask,
    read_image,
    read_json,
    read_records,
)

__all__ = [
    "Annotation",
    "DataError",
    "DataSource",
    "ImageRecord",
    "Problem",
    "Report",
    "check",
    "class_names",
    "decode_mask",
    "read_image",
    "read_json",
    "read_records",
]
