"""Data sets: reading and checking them."""

from yolact_ros.data.check import Report, check, crowd_remark, read_countable
from yolact_ros.data.coco import (
    Annotation,
    DataSource,
    ImageRecord,
    as_rle,
    category_ids,
    class_names,
    decode_mask,
    encode_mask,
    read_annotated_image,
    read_records,
)
from yolact_ros.data.entries import DataError, read_json

__all__ = [
    "Annotation",
    "DataError",
    "DataSource",
    "ImageRecord",
    "Report",
    "as_rle",
    "category_ids",
    "check",
    "class_names",
    "crowd_remark",
    "decode_mask",
    "encode_mask",
    "read_annotated_image",
    "read_countable",
    "read_json",
    "read_records",
]
