"""Data sets: reading and checking them."""

from yolact_ros.data.check import Report, check, read_countable
from yolact_ros.data.coco import Annotation, Dataset, DataSource, ImageRecord
from yolact_ros.data.entries import CocoFile, Rle, read_json
from yolact_ros.data.images import image_path, read_annotated_image
from yolact_ros.data.masks import as_rle, decode_mask, encode_mask
from yolact_ros.data.problems import DataError
from yolact_ros.data.remarks import crowd_remark, other_classes

__all__ = [
    "Annotation",
    "CocoFile",
    "DataError",
    "DataSource",
    "Dataset",
    "ImageRecord",
    "Report",
    "Rle",
    "as_rle",
    "check",
    "crowd_remark",
    "decode_mask",
    "encode_mask",
    "image_path",
    "other_classes",
    "read_annotated_image",
    "read_countable",
    "read_json",
]
