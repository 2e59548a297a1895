"""Results in one memory block of fixed size, so that one copy moves them from a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from yolact_ros.detection.detections import Detections
from yolact_ros.detection.instances import Instances, PlacedDetections
from yolact_ros.detection.regions import PackedMasks, pack, packed_sizes, pixel_rectangles

_COLUMNS = 13
"""Columns: box (4), score and mask score as bits of float32; class id, validity, rectangle of the
mask (4), and whether the image's results are complete."""


@dataclass(frozen=True)
class Results:
    """At most K instances in each of B images, in one block on one device."""

    memory: Tensor
    """uint8, flat: the table, then the masks."""
    shape: tuple[int, int]
    """(B, K)"""
    has_masks: bool
    """Whether the model makes masks."""

    @classmethod
    def allocate(cls, detections: Detections, mask_bytes: int) -> Results:
        """Allocate memory for such detections and `mask_bytes` of masks in total."""
        images, count = detections.scores.shape
        has_masks = detections.coefficients is not None
        size = 4 * images * count * _COLUMNS + (mask_bytes if has_masks else 0)
        memory = torch.empty(size, dtype=torch.uint8, device=detections.scores.device)
        return cls(memory, (images, count), has_masks)

    def on_host(self) -> Results:
        """Allocate the same amount of host memory, pinned if this is on a GPU."""
        size, pinned = len(self.memory), self.memory.is_cuda
        memory = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        return replace(self, memory=memory)

    def head(self, mask_bytes: int) -> Results:
        """Return a view with room for at most `mask_bytes` of masks."""
        images, count = self.shape
        return replace(self, memory=self.memory[: 4 * images * count * _COLUMNS + mask_bytes])

    def to(self, device: torch.device | str) -> Results:
        """Copy the results to another device."""
        return replace(self, memory=self.memory.to(device))

    @property
    def table(self) -> Tensor:
        """The table, int32 [B, K, columns], as a view."""
        images, count = self.shape
        size = 4 * images * count * _COLUMNS
        return self.memory[:size].view(torch.int32).view(images, count, _COLUMNS)

    @property
    def bits(self) -> Tensor:
        """The bit masks of all images (see `PackedMasks`), flat uint8, as a view."""
        images, count = self.shape
        return self.memory[4 * images * count * _COLUMNS :]

    def write(
        self, placed: PlacedDetections, scales: Tensor, complete: Tensor | None = None
    ) -> None:
        """Write detections that were placed with `scales` [B, 1, 4]; does not synchronise.

        `complete` [B] bool tells for each image whether its results are complete; None: all are.
        """
        rectangles = torch.zeros_like(placed.boxes, dtype=torch.int64)
        if placed.grids is not None:
            values, cells = placed.grids.values, placed.grids.cells
            rectangles = pixel_rectangles(placed.extents, cells, values, scales[..., 2:])
            rectangles = rectangles.masked_fill(~placed.valid.unsqueeze(-1), 0)
            flat = rectangles.flatten(0, 1)
            ends = packed_sizes(flat).cumsum(0)
            pack(values.flatten(0, 1), placed.extents.flatten(0, 1), flat, ends, self.bits)
        columns = (
            placed.boxes.view(torch.int32),
            placed.scores.unsqueeze(-1).view(torch.int32),
            placed.mask_scores.unsqueeze(-1).view(torch.int32),
            placed.class_ids.unsqueeze(-1).int(),
            placed.valid.unsqueeze(-1).int(),
            rectangles.int(),
            torch.ones_like(placed.class_ids[..., None], dtype=torch.int32)
            if complete is None
            else complete[:, None, None].expand(*self.shape, 1).int(),
        )
        torch.cat(columns, dim=-1, out=self.table)

    def is_complete(self) -> bool:
        """Whether the results of all images are complete. Call it on the CPU."""
        return bool(self.table[..., 12].all())

    def missing_bytes(self) -> int:
        """Return how many bytes the masks need beyond the available room. Call it on the CPU."""
        needed = int(packed_sizes(self.table[..., 8:12]).sum(dtype=torch.int64))
        return max(0, needed - len(self.bits))

    def instances(
        self, image_sizes: Sequence[tuple[int, int]], class_names: tuple[str, ...]
    ) -> list[Instances]:
        """Return copies of each image's valid instances. Call it on the CPU, if none is missing."""
        table = self.table
        rectangles = table[..., 8:12].long()
        ends = packed_sizes(rectangles).flatten().cumsum(0).view(self.shape)
        starts = ends - packed_sizes(rectangles)
        counts = table[..., 7].sum(dim=1).tolist()
        made = []
        for i, (size, count) in enumerate(zip(image_sizes, counts, strict=True)):
            rows = table[i, :count]
            packed = None
            if self.has_masks:
                first, last = int(starts[i, 0]), int(ends[i, -1])
                bits = self.bits[first:last].clone()
                packed = PackedMasks(rectangles[i, :count], starts[i, :count] - first, bits, size)
            made.append(
                Instances(
                    boxes=rows[:, :4].view(torch.float32).clone(),
                    scores=rows[:, 4].view(torch.float32).clone(),
                    mask_scores=rows[:, 5].view(torch.float32).clone(),
                    class_ids=rows[:, 6].long(),
                    image_size=size,
                    class_names=class_names,
                    stored_masks=packed,
                )
            )
        return made
