"""The stages of a segmenter, each to be timed by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from yolact_ros.detection import Detections, detect, make_instances
from yolact_ros.detection.masks import make_masks, rescore
from yolact_ros.engine import Segmenter, preprocess
from yolact_ros.engine.runtimes import Detected
from yolact_ros.network import Yolact

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
    out; the network is one part unless PyTorch runs it.
    """
    runtime, settings = segmenter.runtime, segmenter.settings
    sizes = [(image.shape[0], image.shape[1]) for image in images]

    def prepare() -> Tensor:
        tensors = [torch.from_numpy(image).to(runtime.device) for image in images]
        return preprocess(tensors, runtime.config).to(runtime.dtype)

    batch = prepare()
    output = runtime(batch)
    calls: dict[str, Callable[[], object]] = {"preprocessing": prepare}
    if isinstance(runtime.run, Yolact):
        calls |= _parts_of(runtime.run, batch)
    else:
        calls["network"] = lambda: runtime(batch)

    def find() -> Detections:
        if isinstance(output, Detected):
            return output.select(settings)
        return detect(output, runtime.anchors, settings)

    calls["NMS"] = find
    detections, prototypes = find().trimmed(), output.prototypes
    grids = make_masks(detections, prototypes, None)
    if grids is not None:
        calls["masks"] = lambda: make_masks(detections, prototypes, None)
        if runtime.mask_iou is not None:
            mask_iou, values = runtime.mask_iou, grids.values
            ids, scores = detections.class_ids, detections.scores
            calls["re-scoring"] = lambda: rescore(mask_iou, values, ids, scores)
    instances = make_instances(detections, prototypes, None, sizes, segmenter.class_names)
    calls["transfer"] = lambda: [each.to("cpu") for each in instances]
    if grids is not None:
        on_host = [each.to("cpu") for each in instances]
        calls["pixels"] = lambda: [each.regions() for each in on_host]
    return calls


def _parts_of(net: Yolact, batch: Tensor) -> dict[str, Callable[[], object]]:
    features = net.backbone(batch)
    pyramid = net.fpn(features)
    calls: dict[str, Callable[[], object]] = {
        "backbone": lambda: net.backbone(batch),
        "FPN": lambda: net.fpn(features),
    }
    if net.protonet is not None:
        protonet = net.protonet
        calls["protonet"] = lambda: protonet(pyramid[0])
    calls["heads"] = lambda: net.head(pyramid)
    return calls
