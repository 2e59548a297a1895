"""The fixed-shape path, from uint8 images to results.

No shape depends on the content of the images, and the host reads nothing before the end, so a CUDA
graph can capture it. Images are resized to the network's input first, so one path serves images of
all sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from yolact_ros.detection import Detections, DetectionSettings, detect
from yolact_ros.detection.detections import Thresholds
from yolact_ros.detection.instances import image_scales, place
from yolact_ros.detection.masks import MaskGrids, make_masks
from yolact_ros.detection.results import Results
from yolact_ros.engine.preprocess import preprocess
from yolact_ros.engine.runtimes.runtime import Runtime
from yolact_ros.network import Predictions

ImageSizes = tuple[tuple[int, int], ...]
"""(height, width) of each image of a batch."""

CANDIDATES = 4096
"""Number of anchors per image that detection considers. If others could have changed the result,
the plain path takes over; in photographs fewer pass the threshold."""


@dataclass(frozen=True)
class Plan:
    """What a path is made for: everything that determines its shapes and constants."""

    images: int
    settings: DetectionSettings
    """With score thresholds of 0: those may change from batch to batch."""

    @classmethod
    def of(cls, images: int, settings: DetectionSettings) -> Plan:
        return cls(images, replace(settings, score_threshold=0.0, confidence_threshold=0.0))

    @property
    def has_fixed_shapes(self) -> bool:
        return self.settings.nms_method != "standard"


@dataclass(frozen=True)
class Batch:
    """The sizes of a batch's images, and the detection settings for it."""

    image_sizes: ImageSizes
    settings: DetectionSettings

    @classmethod
    def of(cls, images: Sequence[Tensor], settings: DetectionSettings) -> Batch:
        """Describe a batch of images [H, W, 3]."""
        return cls(tuple((image.shape[0], image.shape[1]) for image in images), settings)

    @property
    def plan(self) -> Plan:
        return Plan.of(len(self.image_sizes), self.settings)

    @property
    def image_bytes(self) -> int:
        return sum(3 * height * width for height, width in self.image_sizes)

    def mask_bytes(self, area: float) -> int:
        """Return the bytes of bit masks that cover `area` times the images."""
        return int(area * sum(h * ((w + 7) // 8) for h, w in self.image_sizes))

    def numbers(self) -> Tensor:
        """Return a path's inputs besides pixels, float32 [B + 1, 4]: the `image_scales`, then the
        thresholds, padded."""
        scales = [row for (row,) in image_scales(self.image_sizes)]
        rows = [*scales, (*Thresholds.of(self.settings), 0, 0)]
        return torch.tensor(rows, dtype=torch.float32, device="cpu")

    def parts(self, flat: Tensor) -> list[Tensor]:
        """Return views [H, W, 3] of the images stored at the start of a flat buffer."""
        parts = flat[: self.image_bytes].split([3 * h * w for h, w in self.image_sizes])
        return [part.view(*size, 3) for part, size in zip(parts, self.image_sizes, strict=True)]

    def views(self, flat: Tensor) -> list[Tensor] | Tensor:
        """Return the same views, as one tensor [B, H, W, 3] if all sizes are equal."""
        if len(set(self.image_sizes)) == 1:
            return flat[: self.image_bytes].view(-1, *self.image_sizes[0], 3)
        return self.parts(flat)


class FixedPath:
    """Computes `results` from the network's `inputs`, on the device of a runtime that returns
    `Predictions`: `run` calls `predict`, `detect`, `make_masks` and `pack`."""

    @torch.no_grad()
    def __init__(
        self, runtime: Runtime, plan: Plan, mask_bytes: int, candidates: int = CANDIDATES
    ) -> None:
        self.runtime, self.plan, self._candidates = runtime, plan, candidates
        device, side = runtime.device, runtime.config.image_size
        self.inputs = torch.zeros((plan.images, 3, side, side), dtype=runtime.dtype, device=device)
        self.inputs = self.inputs.contiguous(memory_format=torch.channels_last)
        self._numbers = torch.ones((plan.images + 1, 4), dtype=torch.float32, device=device)
        self.results = Results.allocate(self.detect(self.predict()), mask_bytes)

    @torch.no_grad()
    def prepare(self, images: Sequence[Tensor] | Tensor, numbers: Tensor) -> None:
        """Preprocess images, uint8 [H, W, 3] on the device, and store their `Batch.numbers`."""
        preprocess(images, self.runtime.config, self.runtime.dtype, out=self.inputs)
        self._numbers.copy_(numbers)

    @torch.no_grad()
    def run(self) -> None:
        """Compute `results` from the prepared inputs, in fixed shapes."""
        predictions = self.predict()
        detections = self.detect(predictions)
        mask_iou = self.runtime.mask_iou
        self.pack(detections, make_masks(detections, predictions.prototypes, mask_iou))

    def predict(self) -> Predictions:
        """Run the network on the prepared inputs."""
        predictions = self.runtime(self.inputs)
        assert isinstance(predictions, Predictions)
        return predictions

    def detect(self, predictions: Predictions) -> Detections:
        """Find the detections of predictions, with the stored thresholds."""
        return detect(
            predictions,
            self.runtime.anchors,
            self.plan.settings,
            candidates=self._candidates,
            thresholds=Thresholds(*self._numbers[-1, :2].unbind()),
        )

    def pack(self, detections: Detections, grids: MaskGrids | None) -> None:
        """Write detections and their masks to `results`."""
        scales = self._numbers[:-1].unsqueeze(1)
        self.results.write(place(detections, grids, scales), scales, detections.complete)
