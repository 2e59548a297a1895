"""The stages of a segmenter, each to be timed by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from yolact_ros.detection import detect, make_instances
from yolact_ros.detection.masks import make_masks, rescore
from yolact_ros.engine import Segmenter, preprocess

STAGES = {
    "preprocessing": "to the device, resize and normalise",
    "network": "where it runs as one piece",
    "backbone": "",
    "FPN": "",
    "protonet": "",
    "heads": "",
    "NMS": "softmax, thresholds, decoding, non-maximum suppression, top-k",
    "masks": "assembly of the prototypes, sigmoid, crop",
    "re-scoring": "predicted IoU of each mask",
    "transfer": "of the results to the host",
    "pixels": "masks in pixels of the image, on the host",
}
"""What is timed, by name, in the order of a frame."""


@torch.no_grad()
def stages_of(
    segmenter: Segmenter, images: Sequence[npt.NDArray[np.uint8]]
) -> dict[str, Callable[[], object]]:
    """Calls of the parts of `segmenter`, each on what the parts before it made of `images`.

    The parts are the ones that the segmenter calls itself. A part that the network lacks is left
    out.
    """
    net, device, settings = segmenter.net, segmenter.device, segmenter.settings
    sizes = [(image.shape[0], image.shape[1]) for image in images]

    def prepare() -> torch.Tensor:
        tensors = [torch.from_numpy(image).to(device) for image in images]
        return preprocess(tensors, segmenter.config).to(segmenter.dtype)

    batch = prepare()
    predictions = net(batch)
    calls: dict[str, Callable[[], object]] = {"preprocessing": prepare}
    features = net.backbone(batch)
    pyramid = net.fpn(features)
    calls["backbone"] = lambda: net.backbone(batch)
    calls["FPN"] = lambda: net.fpn(features)
    if net.protonet is not None:
        protonet = net.protonet
        calls["protonet"] = lambda: protonet(pyramid[0])
    calls["heads"] = lambda: net.head(pyramid)
    calls["NMS"] = lambda: detect(predictions, segmenter.anchors, settings)

    detections = detect(predictions, segmenter.anchors, settings)
    trimmed, prototypes = detections.trimmed(), predictions.prototypes
    calls["masks"] = lambda: make_masks(detections.trimmed(), prototypes, None)
    grids = make_masks(trimmed, prototypes, None)
    if grids is None:
        del calls["masks"]
    elif net.mask_iou is not None:
        mask_iou, values = net.mask_iou, grids.values
        calls["re-scoring"] = lambda: rescore(mask_iou, values, trimmed.class_ids, trimmed.scores)
    instances = make_instances(detections, prototypes, None, sizes, segmenter.class_names)
    calls["transfer"] = lambda: [each.to("cpu") for each in instances]
    if grids is not None:
        on_host = [each.to("cpu") for each in instances]
        calls["pixels"] = lambda: [each.regions() for each in on_host]
    return calls
