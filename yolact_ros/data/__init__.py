"""Data sets: reading and checking them."""

from yolact_ros.data.check import Report, check, crowd_remark, require_countable
from yolact_ros.data.coco import (
    Annotation,
    DataSource,
    ImageRecord,
    category_ids,
    class_names,
    decode_mask,
    read_image,
    read_records,
)
from yolact_ros.data.entries import DataError, Problem, read_json

__all__ = [
    "Annotation",
    "DataError",
    "DataSource",
    "ImageRecord",
    "Problem",
    "Report",
    "category_ids",
    "check",
    "class_names",
    "crowd_remark",
    "decode_mask",
    "read_image",
    "read_json",
    "read_records",
    "require_countable",
]
