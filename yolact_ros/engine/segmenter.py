"""The segmenter: images in, instances out."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from yolact_ros.detection import DetectionSettings, Instances, detect, make_instances
from yolact_ros.engine.device import capture_lock
from yolact_ros.engine.failures import (
    DeviceMemoryError,
    MemoryNeed,
    allocated,
    detect_lost_device,
    is_out_of_memory,
)
from yolact_ros.engine.fixed import Batch, Plan
from yolact_ros.engine.graphs import Graphs, UnfinishedBatch
from yolact_ros.engine.loading import load_runtime
from yolact_ros.engine.preprocess import preprocess
from yolact_ros.engine.runtimes import Detected
from yolact_ros.engine.submitted import SegmentedBatch, StageTimes, SubmittedBatch
from yolact_ros.engine.threads import run_apart
from yolact_ros.image_files import Image
from yolact_ros.network import NetworkConfig

# Images are only read, so read-only memory, such as a message's, is fine.
warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)


class Segmenter:
    """A network on a device, with its detection settings.

    `segmenter(image)` takes one BGR uint8 image [H, W, 3], or a list of them of any sizes, and
    returns `Instances` on the CPU, one or a list. `settings` may be replaced at any time, for later
    calls. It is thread-safe: concurrent calls are serialised.
    """

    def __init__(
        self,
        model: str | NetworkConfig = "",
        weights: str | Path = "",
        *,
        device: str = "auto",
        precision: str = "auto",
        backend: str = "auto",
        backbone: str = "",
        dcn_variant: str = "",
        score_threshold: float = 0.3,
        nms_method: str | None = None,
        nms_iou_threshold: float | None = None,
        top_k: int | None = None,
    ) -> None:
        """Build the network and load its weights, or read an exported network.

        Args:
            model: A configuration or its name. Empty: taken from the weights.
            weights: A file; or a published model's name, downloaded once; or "random", for
                timing. Empty: the published weights of `model`, or the embedded person model.
                A file of `yolact export` (.onnx, .xml, .pt2) determines model and backend; a .pt2
                holds machine code that is run, so load it only if you trust its origin.
            device: "auto", "cpu", "cuda" or "cuda:1".
            precision: "auto" (float32 on a CPU, float16 on CUDA), "float32", "float16" or
                "bfloat16". CPUs do not support float16; OpenVINO supports bfloat16 if the processor
                does.
            backend: "torch"; "inductor" (torch.compile), which needs a C++ compiler and takes about
                a minute for each batch size; "openvino" or "onnxruntime", CPU-only extras, which
                take some seconds to convert the network; or "auto", the fastest installed one by
                measurement: PyTorch, except that a CPU with OpenVINO uses it for efficientnet_lite0
                (the embedded model's backbone) and for bfloat16 if the processor supports it.
            backbone: Replaces the model's backbone, if not empty.
            dcn_variant: Replaces the model's placement of deformable convolutions, if not empty.
            score_threshold: Only instances that score more are returned.
            nms_method, nms_iou_threshold, top_k: See `DetectionSettings`. None: the value of an
                exported detection stage, else the default of `DetectionSettings`.

        Raises:
            ValueError: For a name or value that is not allowed.
            WeightsError: For weights that cannot be used.
            DownloadError: For weights that cannot be downloaded.
            MissingExtraError: For a backend that is not installed.
        """
        others = {"nms_method": nms_method, "nms_iou_threshold": nms_iou_threshold, "top_k": top_k}
        wanted: dict[str, Any] = {"score_threshold": score_threshold}
        wanted |= {name: value for name, value in others.items() if value is not None}
        DetectionSettings(**wanted)  # reject bad values before anything is loaded
        changes = {"backbone": backbone, "dcn_variant": dcn_variant}
        changes = {name: value for name, value in changes.items() if value}
        self.runtime, self._origin = load_runtime(
            model, weights, changes, device=device, precision=precision, backend=backend
        )
        self.settings = replace(self.runtime.header.settings or DetectionSettings(), **wanted)
        # An exported detection stage returns no predictions, which the fixed-shape path needs.
        is_graphed = self.device.type == "cuda" and self.runtime.header.settings is None
        # cuDNN caches its choice of kernels per thread, and does not benchmark in a thread that has
        # chosen without benchmarking: captures therefore have a thread apart from all other work.
        self._thread = ThreadPoolExecutor(1, "yolact") if self.device.type == "cuda" else None
        self._graphs = Graphs(self.runtime) if is_graphed else None
        self._largest_batch = 0
        self._lock = threading.Lock()

    @property
    def settings(self) -> DetectionSettings:
        """How raw predictions become instances.

        Setting it raises ValueError for classes that the model does not have, and for settings that
        an exported detection stage cannot apply.
        """
        return self._settings

    @settings.setter
    def settings(self, settings: DetectionSettings) -> None:
        count = len(self.class_names)
        if any(class_id >= count for class_id in settings.class_ids):
            raise ValueError(
                f"class_ids={settings.class_ids} is not allowed: the model has the classes 0 to "
                f"{count - 1}"
            )
        self.runtime.header.check_settings(settings)
        self._settings = settings

    @property
    def device(self) -> torch.device:
        return self.runtime.device

    @property
    def config(self) -> NetworkConfig:
        return self.runtime.config

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.config.class_names

    @property
    def description(self) -> str:
        """Model, weights, backend, device and classes in one line."""
        names = self.class_names
        shown = ", ".join(names[:5]) + (f", … ({len(names)})" if len(names) > 5 else "")
        return (
            f"{self.config.name} ({self._origin}) on {self.device}, {self.runtime.name}, "
            f"{self.runtime.precision}, classes: {shown}"
        )

    @overload
    def __call__(self, images: Image | Tensor) -> Instances: ...
    @overload
    def __call__(self, images: Sequence[Image | Tensor]) -> list[Instances]: ...
    def __call__(self, images: Any) -> Instances | list[Instances]:
        """Segment one image or several; `submit` also returns the time of each stage.

        A batch that does not fit into the device's memory is split. Raises ValueError for an
        invalid image, DeviceMemoryError if not even one image fits, and DeviceLostError.
        """
        if not isinstance(images, list | tuple):
            return self([images])[0]
        return self.submit(images).result().instances

    def submit(self, images: Sequence[Image | Tensor]) -> SubmittedBatch:
        """Submit a batch.

        On CUDA, if the batch has a graph, the device works asynchronously: submit the next batch
        before you fetch the previous one's results. Otherwise the batch is computed before this
        returns. Images in host memory and the settings may be changed afterwards. Raises the same
        errors as a call.
        """
        return self._submit_all([_as_tensor(image) for image in images], self.settings)

    def _submit_all(self, images: list[Tensor], settings: DetectionSettings) -> SubmittedBatch:
        """Submit a batch, in parts if the device's memory is known to be too small for it."""
        with self._lock, detect_lost_device(self.device):
            most = self._largest_batch or max(1, len(images))
            parts = [self._submit(part, settings) for part in _split(images, most)]

        def result() -> SegmentedBatch:
            with self._lock, detect_lost_device(self.device):
                return SegmentedBatch.joined(part.result() for part in parts)

        return SubmittedBatch(lambda: all(part.done() for part in parts), result)

    def warm_up(
        self, image_size: tuple[int, int] = (480, 640), batch_sizes: Sequence[int] = (1,)
    ) -> None:
        """Segment black images of (height, width), so that the first real ones are not slower.

        On CUDA, graphs are captured for these batch sizes and the current settings (apart from
        score thresholds), including those for which there was too little memory before.
        """
        # Nothing scores more than 1. Random weights may find more in black than a graph can take.
        settings = replace(self.settings, score_threshold=1.0)

        def segment(count: int) -> None:
            images = [torch.zeros((*image_size, 3), dtype=torch.uint8, device="cpu")] * count
            self._submit_all(images, settings).result()

        for count in batch_sizes:
            if self._graphs is not None:
                with self._lock, detect_lost_device(self.device):
                    self._graphs.of(Plan.of(count, settings), capture=True)
            for _ in range(1 if self._graphs is None else 2):  # a graph has two slots
                run_apart(partial(segment, count))

    def _submit(self, images: list[Tensor], settings: DetectionSettings) -> SubmittedBatch:
        started = time.perf_counter()
        batch = Batch.of(images, settings)
        pending = None if self._graphs is None else self._graphs.submit(images, batch)
        if pending is None:
            segmented = self._segment_within_memory(images, settings)
            return SubmittedBatch(lambda: True, lambda: segmented)
        submitting = 1e3 * (time.perf_counter() - started)

        def result() -> SegmentedBatch:
            outcome = pending.wait()
            if isinstance(outcome, UnfinishedBatch):
                return self._finish(outcome)
            return SegmentedBatch(outcome, StageTimes(submitting, pending.milliseconds, 0))

        return SubmittedBatch(pending.is_done, result)

    def _finish(self, rest: UnfinishedBatch) -> SegmentedBatch:
        """Repeat a batch with more room for masks if possible, else on the plain path."""
        graphs, settings = self._graphs, rest.batch.settings
        if rest.mask_bytes and graphs is not None and graphs.make_room(rest.batch, rest.mask_bytes):
            return self._submit(rest.images, settings).result()
        return self._segment_within_memory(rest.images, settings)

    def _segment_within_memory(
        self, images: list[Tensor], settings: DetectionSettings
    ) -> SegmentedBatch:
        """Segment a batch in as few parts as the device's memory allows."""
        before = allocated(self.device)
        try:
            return self._segment_in_thread(images, settings)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            need = MemoryNeed.of(error, len(images), self.device, before)
        # Now that the exception is gone, so are the tensors that its traceback held.
        parts = _split(images, self._batch_within(need))
        return SegmentedBatch.joined(self._segment_within_memory(part, settings) for part in parts)

    def _segment_in_thread(
        self, images: list[Tensor], settings: DetectionSettings
    ) -> SegmentedBatch:
        if self._thread is None:
            return self._segment(images, settings)
        for device in {image.device for image in images if image.is_cuda}:
            torch.cuda.current_stream(device).synchronize()  # it may still write them
        with capture_lock(self.device):  # cuDNN may benchmark
            return self._thread.submit(self._segment, images, settings).result()

    def _batch_within(self, need: MemoryNeed) -> int:
        """Save memory after a batch did not fit; return how many images to try at once now.

        Graphs, which hold memory of their own, are released; for a single image for good. Raises
        DeviceMemoryError if there is nothing left to save.
        """
        graphs, config = self._graphs, self.config
        had_graphs = graphs is not None and len(graphs) > 0
        if graphs is not None:
            graphs.clear()
        most = (need.images + 1) // 2
        if need.images > 1:
            self._largest_batch = most
            change = (
                f"batches of {need.images}: {need}; batches have {most} images at most from now on"
            )
        elif had_graphs:
            self._graphs = None  # otherwise they would be captured again, and fail again
            change = f"CUDA graphs beside {config.name}: {need}; images take longer from now on"
        else:
            raise DeviceMemoryError(
                f"{self.device} has too little memory for {config.name}: {need}; try a smaller "
                f"model, or one with image_size {need.image_size(config.image_size)}, not "
                f"{config.image_size}"
            )
        warnings.warn(
            f"{self.device} has too little memory for {change}", RuntimeWarning, stacklevel=4
        )
        return most

    @torch.no_grad()
    def _segment(self, images: list[Tensor], settings: DetectionSettings) -> SegmentedBatch:
        """Segment a batch stage by stage, with dynamic shapes."""
        on_gpu = self.device.type == "cuda"
        with torch.cuda.device(self.device) if on_gpu else contextlib.nullcontext():
            started = self._now()
            tensors = [image.to(self.device) for image in images]
            batch = preprocess(tensors, self.config, self.runtime.dtype)
            prepared = self._now()
            output = self.runtime(batch)
            computed = self._now()
            mask_iou, mask_scores = self.runtime.mask_iou, None
            if isinstance(output, Detected):
                detections, mask_scores = output.select(settings)
            else:
                detections = detect(output, self.runtime.anchors, settings)
            instances = make_instances(
                detections,
                output.prototypes,
                mask_iou if mask_scores is None else None,
                [(image.shape[0], image.shape[1]) for image in images],
                self.class_names,
            )
            if mask_scores is not None:  # the graph has re-scored
                instances = [
                    replace(each, mask_scores=scores[: len(each)])
                    for each, scores in zip(instances, mask_scores, strict=True)
                ]
            instances = [each.to("cpu") for each in instances]
            times = (started, prepared, computed, self._now())
        return SegmentedBatch(
            instances, StageTimes(*(1000 * (b - a) for a, b in itertools.pairwise(times)))
        )

    def _now(self) -> float:
        """Synchronise with the device and return the time in seconds."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        return time.perf_counter()


def _split(images: list[Tensor], most: int) -> list[list[Tensor]]:
    """Split a batch into parts of at most `most` images."""
    return [images[at : at + most] for at in range(0, len(images), most)]


def _as_tensor(image: Image | Tensor) -> Tensor:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        if min(image.strides, default=0) < 0:  # not supported by PyTorch
            image = image.copy()
        image = torch.from_numpy(image)
    if not isinstance(image, Tensor) or image.dtype != torch.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise ValueError(f"an image of {kind} is not allowed: it must be a uint8 array")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f"an image of shape {tuple(image.shape)} is not allowed: it must be [H, W, 3] (BGR)"
        )
    return image
