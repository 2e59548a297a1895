"""Other instance segmentation models to compare with: torchvision's and Ultralytics'."""

from __future__ import annotations

import os
import tempfile
from types import MethodType
from typing import Any
from unittest import mock

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import clip_boxes_to_image

from yolact_ros.benchmark.contender import Contender, Found
from yolact_ros.benchmark.weights import adopt_statistics
from yolact_ros.detection import DetectionSettings
from yolact_ros.detection.candidates import take
from yolact_ros.detection.nms import suppress
from yolact_ros.engine import Image


def mask_rcnn(device: torch.device, image: Image, *, fast_nms: bool) -> Contender:
    """Make torchvision's Mask R-CNN ResNet-50 with random weights, at its default input size.

    Its score threshold is set so that exactly the 100 instances that it reports for `image` pass.
    `fast_nms` replaces the NMS of its last stage (YOLACT, table 2a).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, box_score_thresh=0.0)
    net = net.eval().requires_grad_(False).to(device)
    heads = net.roi_heads
    if fast_nms:
        heads.postprocess_detections = MethodType(_fast_postprocess, heads)

    def tensor_of(image: Image) -> Tensor:
        return torch.from_numpy(image).to(device).flip(2).permute(2, 0, 1).float().div(255)

    def segment(image: Image) -> Found:
        out = net([tensor_of(image)])[0]
        masks = out["masks"].squeeze(1) > 0.5
        return Found(out["boxes"], out["scores"], out["labels"], masks).cpu()

    with torch.no_grad():
        adopt_statistics(net.backbone, net.transform([tensor_of(image)])[0].tensors)
        heads.score_thresh = float(segment(image).scores.min()) * 0.999
    name = "Mask R-CNN ResNet-50, " + ("Fast NMS" if fast_nms else "its own NMS")
    return Contender(name, segment, "torchvision, random weights")


def _fast_postprocess(
    heads: RoIHeads,
    logits: Tensor,
    offsets: Tensor,
    proposals: list[Tensor],
    sizes: list[tuple[int, int]],
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """`RoIHeads.postprocess_detections` with Fast NMS: boxes, scores and labels of each image."""
    settings = DetectionSettings()
    counts = [len(each) for each in proposals]
    every_box = heads.box_coder.decode(offsets, proposals).split(counts)
    every_score = logits.softmax(-1).split(counts)
    found = []
    for boxes, scores, size in zip(every_box, every_score, sizes, strict=True):
        classes = scores[:, 1:].mT  # [C, N], without background
        top, index = classes.topk(min(settings.nms_top_k, classes.shape[1]))
        boxes = clip_boxes_to_image(boxes, size)[:, 1:].transpose(0, 1)  # [C, N, 4]
        top = suppress(boxes, index, top, heads.nms_thresh)
        kept, order = top.flatten().topk(min(heads.detections_per_img, top.numel()))
        order = order[kept > heads.score_thresh]
        labels = order // top.shape[1] + 1
        found.append((take(boxes, index).flatten(0, 1)[order], kept[: len(order)], labels))
    return tuple(list(column) for column in zip(*found, strict=True))  # type: ignore[return-value]


def ultralytics(device: torch.device, image: Image, model: str, score: float) -> Contender:
    """Make an Ultralytics segmentation model, such as "yolo11n-seg", with random weights.

    It is built from the description inside the package `ultralytics`, at its default input size
    for the shape of the image. The package cannot access the network or the user's settings.
    `score` is the minimum score of an instance; 0: chosen so that exactly the instances that it
    reports for `image`, at most 100, pass. Raises ModuleNotFoundError without the package.
    """
    # Its import and its first call change the number of threads of the whole process.
    threads, threads_of_opencv = torch.get_num_threads(), cv2.getNumThreads()
    with tempfile.TemporaryDirectory() as folder:
        quiet = {
            "YOLO_OFFLINE": "true",
            "YOLO_AUTOINSTALL": "false",
            "YOLO_VERBOSE": "false",
            "YOLO_CONFIG_DIR": folder,
        }
        with mock.patch.dict(os.environ, quiet):  # read when the package is imported
            from ultralytics import YOLO
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: Any = YOLO(f"{model}.yaml", verbose=False)
    with torch.no_grad():  # before the first call, which folds batch norm away
        pixels = torch.from_numpy(image).flip(2).permute(2, 0, 1)[None].float() / 255
        adopt_statistics(net.model.eval(), F.interpolate(pixels, size=(640, 640)))
    options = {"max_det": 100, "device": device, "retina_masks": True, "verbose": False}

    def segment(image: Image) -> Found:
        result = net.predict(image, conf=score, **options)[0]
        boxes = result.boxes
        masks = torch.zeros(0, *image.shape[:2]) if result.masks is None else result.masks.data
        return Found(boxes.xyxy, boxes.conf, boxes.cls.long(), masks).cpu()

    found = net.predict(image, conf=1e-9, **options)[0].boxes.conf
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads_of_opencv)
    if score == 0 and len(found):
        score = float(found.min()) * 0.999
    return Contender(model, segment, "Ultralytics, random weights")
