"""The stages of a segmenter, to be timed separately."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, nn

from yolact_ros.detection import Detections, Instances, detect, make_instances
from yolact_ros.detection.masks import make_masks, rescore
from yolact_ros.engine import Image, Segmenter, preprocess
from yolact_ros.engine.device import cudnn_benchmark, garbage_collection_disabled
from yolact_ros.engine.fixed import Batch, FixedPath
from yolact_ros.engine.graphs import MASK_AREA
from yolact_ros.engine.runtimes import Detected, Runtime
from yolact_ros.network import Yolact

Calls = dict[str, Callable[[], object]]
"""Calls to time, by name."""

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
    "packing": "masks in pixels of the image, as bits, on a GPU",
    "transfer": "of the results to the host",
    "pixels": "masks in pixels of the image, on the host",
}
"""What is timed, by name, in the order of a frame."""


def repeats_on(device: torch.device) -> int:
    """Return `repeats` for `measure`: a GPU stage may be shorter than a synchronisation."""
    return 20 if device.type == "cuda" else 1


@torch.no_grad()
def stages_of(segmenter: Segmenter, images: Sequence[Image]) -> Calls:
    """Return calls of the parts of `segmenter`, each on the output of the previous for `images`.

    The parts are those that the segmenter itself calls: on a GPU, those of the fixed-shape path.
    Parts that the network lacks are left out; the network is one part unless PyTorch runs it.
    """
    is_graphed = segmenter.device.type == "cuda" and segmenter.runtime.header.settings is None
    if is_graphed and segmenter.settings.nms_method != "standard":
        return fixed_stages_of(segmenter, images)
    runtime, settings = segmenter.runtime, segmenter.settings
    sizes = [(image.shape[0], image.shape[1]) for image in images]

    def prepare() -> Tensor:
        tensors = [torch.from_numpy(image).to(runtime.device) for image in images]
        return preprocess(tensors, runtime.config, runtime.dtype)

    batch = prepare()
    output = runtime(batch)

    def find() -> Detections:
        if isinstance(output, Detected):
            return output.select(settings)[0]
        return detect(output, runtime.anchors, settings)

    detections, prototypes = find().trimmed(), output.prototypes
    in_graph = isinstance(output, Detected) and output.mask_scores is not None
    instances = make_instances(detections, prototypes, None, sizes, segmenter.class_names)
    return {
        "preprocessing": prepare,
        **_network_calls(runtime, batch),
        "NMS": find,
        **_mask_calls(detections, prototypes, None if in_graph else runtime.mask_iou),
        "transfer": lambda: [each.to("cpu") for each in instances],
        **_pixel_calls([each.to("cpu") for each in instances]),
    }


@torch.no_grad()
def fixed_stages_of(segmenter: Segmenter, images: Sequence[Image], in_parts: bool = True) -> Calls:
    """`stages_of` for the fixed-shape path; on CUDA each part is its own graph, so that launches
    cost no time. The network is one part unless `in_parts`."""
    runtime, device = segmenter.runtime, segmenter.device
    tensors = [torch.from_numpy(image) for image in images]
    batch = Batch.of(tensors, segmenter.settings)
    staged = batch.views(torch.cat([each.flatten() for each in tensors]).to(device))
    numbers = batch.numbers().to(device)

    def run_path(mask_bytes: int) -> FixedPath:
        path = FixedPath(runtime, batch.plan, mask_bytes)
        path.prepare(staged, numbers)
        path.run()
        return path

    # As much room for masks as a graph has after some such frames.
    path = run_path(batch.mask_bytes(MASK_AREA))
    if missing := path.results.to("cpu").missing_bytes():
        path = run_path(2 * (len(path.results.bits) + missing))
    predictions = path.predict()
    detections, prototypes = path.detect(predictions), predictions.prototypes
    grids = make_masks(detections, prototypes, None)
    calls: Calls = {
        "preprocessing": lambda: path.prepare(staged, numbers),
        **_network_calls(runtime, path.inputs, in_parts),
        "NMS": lambda: path.detect(predictions),
        **_mask_calls(detections, prototypes, runtime.mask_iou),
        "packing": lambda: path.pack(detections, grids),
    }
    results, host = path.results, path.results.on_host()
    return {
        **{name: as_graph(call, device) for name, call in calls.items()},
        "transfer": lambda: (host.memory.copy_(results.memory, non_blocking=True), host)[1],
        **_pixel_calls(results.to("cpu").instances(batch.image_sizes, segmenter.class_names)),
    }


def _network_calls(runtime: Runtime, batch: Tensor, in_parts: bool = True) -> Calls:
    net = runtime.run
    if not (in_parts and isinstance(net, Yolact)):
        return {"network": partial(runtime, batch)}
    features = net.backbone(batch)
    pyramid = net.fpn(features)
    calls: Calls = {"backbone": partial(net.backbone, batch), "FPN": partial(net.fpn, features)}
    if net.protonet is not None:
        calls["protonet"] = partial(net.protonet, pyramid[0])
    return {**calls, "heads": partial(net.head, pyramid)}


def _mask_calls(
    detections: Detections, prototypes: Tensor | None, mask_iou: nn.Module | None
) -> Calls:
    make = partial(make_masks, detections, prototypes, None)
    grids = make()
    if grids is None:
        return {}
    calls: Calls = {"masks": make}
    if mask_iou is not None:
        ids, scores = detections.class_ids, detections.scores
        calls["re-scoring"] = partial(rescore, mask_iou, grids.values, ids, scores)
    return calls


def _pixel_calls(instances: Sequence[Instances]) -> Calls:
    # Not `Instances.regions`, which caches its result.
    masks = [(each.stored_masks, each.image_size) for each in instances]
    stored = [(each, size) for each, size in masks if each is not None]
    return {"pixels": lambda: [each.regions(*size) for each, size in stored]} if stored else {}


def as_graph(
    call: Callable[[], object], device: torch.device, copies: int = 1
) -> Callable[[], object]:
    """Return a CUDA graph that repeats `call` `copies` times, so that kernel launches cost nothing;
    the launch of the graph itself takes some microseconds. On a CPU, return `call`.

    It is captured without gradients, in its own thread: in a thread that has already chosen
    kernels, cuDNN would not benchmark as it does for the segmenter's graphs.
    """
    if device.type != "cuda":
        return call
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))

    def capture() -> list[object]:
        with torch.no_grad(), torch.cuda.stream(stream):
            with cudnn_benchmark():
                call()
            with garbage_collection_disabled(), torch.cuda.graph(graph, stream=stream):
                return [call() for _ in range(copies)]

    # The graph keeps neither the tensors that it uses nor the kernels that cuDNN compiled for the
    # thread alive.
    thread = ThreadPoolExecutor(1, "yolact-stage")
    kept = call, thread, thread.submit(capture).result()

    def replay() -> object:
        graph.replay()
        return kept[-1][-1]

    return replay
