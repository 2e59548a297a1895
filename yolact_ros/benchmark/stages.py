"""The stages of a segmenter, to be timed separately."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from yolact_ros.detection import Detections, Instances, MaskRegions, detect, make_instances
from yolact_ros.detection.detections import Thresholds
from yolact_ros.detection.instances import Placed, place
from yolact_ros.detection.masks import make_masks, rescore
from yolact_ros.detection.results import Results
from yolact_ros.engine import Image, Segmenter, preprocess
from yolact_ros.engine.device import cudnn_benchmark, garbage_kept
from yolact_ros.engine.fixed import CANDIDATES, Batch
from yolact_ros.engine.graphs import MASK_AREA
from yolact_ros.engine.runtimes import Detected
from yolact_ros.network import Predictions, Yolact

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
def stages_of(segmenter: Segmenter, images: Sequence[Image]) -> dict[str, Callable[[], object]]:
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
    calls: dict[str, Callable[[], object]] = {"preprocessing": prepare}
    if isinstance(runtime.run, Yolact):
        calls |= _parts_of(runtime.run, batch)
    else:
        calls["network"] = lambda: runtime(batch)

    def find() -> Detections:
        if isinstance(output, Detected):
            return output.select(settings)[0]
        return detect(output, runtime.anchors, settings)

    calls["NMS"] = find
    detections, prototypes = find().trimmed(), output.prototypes
    grids = make_masks(detections, prototypes, None)
    if grids is not None:
        calls["masks"] = lambda: make_masks(detections, prototypes, None)
        in_graph = isinstance(output, Detected) and output.mask_scores is not None
        if runtime.mask_iou is not None and not in_graph:
            mask_iou, values = runtime.mask_iou, grids.values
            ids, scores = detections.class_ids, detections.scores
            calls["re-scoring"] = lambda: rescore(mask_iou, values, ids, scores)
    instances = make_instances(detections, prototypes, None, sizes, segmenter.class_names)
    calls["transfer"] = lambda: [each.to("cpu") for each in instances]
    if grids is not None:
        on_host = [each.to("cpu") for each in instances]
        calls["pixels"] = lambda: [_pixels(each) for each in on_host]
    return calls


@torch.no_grad()
def fixed_stages_of(
    segmenter: Segmenter, images: Sequence[Image], in_parts: bool = True
) -> dict[str, Callable[[], object]]:
    """`stages_of` for the fixed-shape path; on CUDA each part is its own graph, so that launches
    cost no time. The network is one part unless `in_parts`."""
    runtime, settings, device = segmenter.runtime, segmenter.settings, segmenter.device
    tensors = [torch.from_numpy(image) for image in images]
    batch = Batch.of(tensors, settings)
    staged = batch.views(torch.cat([each.flatten() for each in tensors]).to(device))
    numbers = batch.numbers().to(device)
    scales, thresholds = numbers[:-1].unsqueeze(1), Thresholds(*numbers[-1, :2].unbind())
    inputs = preprocess(staged, runtime.config, runtime.dtype)
    predictions = runtime(inputs)
    assert isinstance(predictions, Predictions)
    prototypes = predictions.prototypes

    def find() -> Detections:
        return detect(
            predictions,
            runtime.anchors,
            batch.plan.settings,
            candidates=CANDIDATES,
            thresholds=thresholds,
        )

    detections = find()
    grids = make_masks(detections, prototypes, None)
    results = _packed(place(detections, grids, scales), scales, batch, detections.complete)
    host = results.on_host()
    calls: dict[str, Callable[[], object]] = {
        "preprocessing": lambda: preprocess(staged, runtime.config, runtime.dtype, out=inputs)
    }
    if in_parts and isinstance(runtime.run, Yolact):
        calls |= _parts_of(runtime.run, inputs)
    else:
        calls["network"] = lambda: runtime(inputs)
    calls["NMS"] = find
    if grids is not None:
        calls["masks"] = lambda: make_masks(detections, prototypes, None)
        if runtime.mask_iou is not None:
            mask_iou, values = runtime.mask_iou, grids.values
            ids, scores = detections.class_ids, detections.scores
            calls["re-scoring"] = lambda: rescore(mask_iou, values, ids, scores)
    calls["packing"] = lambda: results.write(
        place(detections, grids, scales), scales, detections.complete
    )
    calls = {name: as_graph(call, device) for name, call in calls.items()}
    calls["transfer"] = lambda: (host.memory.copy_(results.memory, non_blocking=True), host)[1]
    if grids is not None:
        found = results.to("cpu").instances(batch.image_sizes, segmenter.class_names)
        calls["pixels"] = lambda: [_pixels(each) for each in found]
    return calls


def _packed(placed: Placed, scales: Tensor, batch: Batch, complete: Tensor | None) -> Results:
    """Allocate and write results with as much mask room as a graph has after some such frames."""
    results = Results.allocate(placed, batch.mask_bytes(MASK_AREA))
    results.write(placed, scales, complete)
    if missing := results.to("cpu").missing_bytes():
        results = Results.allocate(placed, 2 * (len(results.bits) + missing))
        results.write(placed, scales, complete)
    return results


def _pixels(instances: Instances) -> MaskRegions:
    assert instances.stored_masks is not None
    return instances.stored_masks.regions(*instances.image_size)  # bypasses the instances' cache


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
            with garbage_kept(), torch.cuda.graph(graph, stream=stream):
                return [call() for _ in range(copies)]

    # The graph keeps neither the tensors that it uses nor the kernels that cuDNN compiled for the
    # thread alive.
    thread = ThreadPoolExecutor(1, "yolact-stage")
    kept = call, thread, thread.submit(capture).result()

    def replay() -> object:
        graph.replay()
        return kept[-1][-1]

    return replay
