"""The path in fixed shapes, from uint8 images to results; on CUDA captured as a graph.

Nothing in it depends on what the images show, and the host reads nothing before the end. So a GPU
can be given all of it in one call, and the next images can be prepared while it computes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from yolact_ros.detection import DetectionSettings, Instances, detect
from yolact_ros.detection.instances import Placed, image_scales, place
from yolact_ros.detection.masks import make_masks
from yolact_ros.detection.results import Results
from yolact_ros.engine.preprocess import preprocess
from yolact_ros.engine.runtimes.runtime import Runtime
from yolact_ros.network import Predictions

ImageSizes = tuple[tuple[int, int], ...]
"""(height, width) of each image of a batch."""

MASK_AREA = 8
"""Room for masks: so many times the image's area. Where that is too little, the plain path makes
the masks of those images, and there is more room from the next on."""

CANDIDATES = 2048
"""Anchors of an image that detection looks at: those of the best scores. Where others could have
changed what is found, the plain path takes over; so many never matter in photographs."""

WARM_UP_RUNS = 2
"""Eager runs before a capture: libraries choose their kernels and take their memory in them."""


@dataclass(frozen=True)
class Batch:
    """What a graph is captured for: everything that its shapes and constants come from."""

    image_sizes: ImageSizes
    settings: DetectionSettings

    @property
    def has_fixed_shapes(self) -> bool:
        return self.settings.nms_method != "standard"

    @property
    def image_bytes(self) -> int:
        return sum(3 * height * width for height, width in self.image_sizes)

    def mask_bytes(self, area: float) -> int:
        """Bytes of masks, one bit a pixel, that cover `area` times the images."""
        return int(area * sum(h * ((w + 7) // 8) for h, w in self.image_sizes))

    def views(self, flat: Tensor) -> list[Tensor] | Tensor:
        """The images [H, W, 3] that lie in flat bytes; [B, H, W, 3] where they are of one size."""
        if len(set(self.image_sizes)) == 1:
            return flat.view(-1, *self.image_sizes[0], 3)
        parts = flat.split([3 * height * width for height, width in self.image_sizes])
        return [part.view(*size, 3) for part, size in zip(parts, self.image_sizes, strict=True)]


class FixedPath:
    """Images in `inputs`, uint8 and flat, to `results`, on the device of a runtime that gives
    `Predictions`."""

    @torch.no_grad()
    def __init__(
        self,
        runtime: Runtime,
        batch: Batch,
        mask_area: float = MASK_AREA,
        candidates: int = CANDIDATES,
    ) -> None:
        self.runtime, self.batch, self._candidates = runtime, batch, candidates
        device = runtime.device
        self.inputs = torch.zeros(batch.image_bytes, dtype=torch.uint8, device=device)
        self._scales = torch.tensor(
            image_scales(batch.image_sizes), dtype=torch.float32, device=device
        )
        self.results = Results.allocate(self._place()[0], batch.mask_bytes(mask_area))

    @torch.no_grad()
    def run(self) -> None:
        """From `inputs` to `results`; every step has the same shapes whatever the images show."""
        placed, complete = self._place()
        self.results.write(placed, self._scales, complete)

    def _place(self) -> tuple[Placed, Tensor]:
        """What is found, and for each image whether it is what all anchors would have given."""
        runtime, settings = self.runtime, self.batch.settings
        images = preprocess(self.batch.views(self.inputs), runtime.config, runtime.dtype)
        predictions = runtime(images)
        assert isinstance(predictions, Predictions)
        chosen, anchors, rest = shortlist(predictions, runtime.anchors, self._candidates)
        detections = detect(chosen, anchors, settings, fixed_shapes=True)
        grids = make_masks(detections, predictions.prototypes, runtime.mask_iou)
        # Anchors that were left out come after all of a better score, and suppress none of them.
        threshold = max(settings.score_threshold, settings.confidence_threshold)
        complete = rest <= threshold
        if detections.scores.shape[1] == settings.top_k:
            complete |= detections.scores[:, -1] >= rest
        return place(detections, grids, self._scales), complete


def shortlist(
    predictions: Predictions, anchors: Tensor, count: int
) -> tuple[Predictions, Tensor, Tensor]:
    """The `count` anchors of each image whose best classes score highest.

    Returns their predictions, the anchors [B, N, 4], and the best score [B] of all others.
    """
    scores = predictions.class_logits.float().softmax(dim=-1)[..., 1:].amax(dim=-1).nan_to_num(-1)
    count = min(count, scores.shape[1] - 1)
    best, index = scores.topk(count + 1)
    rows = index[:, :count, None]

    def take(values: Tensor) -> Tensor:
        return values.gather(1, rows.expand(-1, -1, values.shape[-1]))

    coefficients = predictions.coefficients
    chosen = Predictions(
        class_logits=take(predictions.class_logits),
        box_offsets=take(predictions.box_offsets),
        coefficients=None if coefficients is None else take(coefficients),
        prototypes=predictions.prototypes,
    )
    return chosen, anchors[index[:, :count]], best[:, count]


class Slot:
    """Memory for one batch on its way: pinned on the host, and staged on the device."""

    def __init__(self, path: FixedPath) -> None:
        self.images = torch.empty(path.batch.image_bytes, dtype=torch.uint8, pin_memory=True)
        self.staged = torch.empty_like(path.inputs)
        self.results = path.results.on_host()
        self.uploaded, self.taken = torch.cuda.Event(), torch.cuda.Event()
        self.begun, self.done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.pending: Pending | None = None


class Pending:
    """Results that the device is working on."""

    def __init__(self, slot: Slot, batch: Batch, class_names: tuple[str, ...]) -> None:
        self._slot, self._batch, self._class_names = slot, batch, class_names
        self._instances: list[Instances] | None = None
        self.needs_room = False
        """After `wait`: whether there was too little for the masks."""
        self.milliseconds = 0.0
        """After `wait`: how long the device computed."""

    def is_done(self) -> bool:
        """Whether `wait` would return, or raise, at once."""
        if self._slot.pending is not self:
            return True
        try:
            return self._slot.done.query()
        except RuntimeError:  # the device is lost
            return True

    def wait(self) -> list[Instances] | None:
        """Instances on the CPU, when they are there; None where only the plain path finds all."""
        slot = self._slot
        if slot.pending is self:
            slot.done.synchronize()
            slot.pending = None
            self.milliseconds = slot.begun.elapsed_time(slot.done)
            results = slot.results
            self.needs_room = results.missing_bytes() > 0
            if results.is_complete() and not self.needs_room:
                sizes = self._batch.image_sizes
                self._instances = results.instances(sizes, self._class_names)
        return self._instances


class Lane:
    """What the graphs of a device share. They follow each other: no two compute at once."""

    def __init__(self, device: torch.device) -> None:
        self.compute, self.upload = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        """Memory of what graphs make on their way."""


class GraphedPath:
    """A `FixedPath` as a CUDA graph, with memory for two batches: one computes, one is prepared."""

    def __init__(self, runtime: Runtime, batch: Batch, lane: Lane, mask_area: float) -> None:
        device = runtime.device
        self.mask_area = mask_area
        self._compute, self._upload = lane.compute, lane.upload
        with (
            torch.cuda.device(device),
            torch.cuda.stream(self._compute),
            # The sizes of all layers are fixed: let cuDNN try its kernels once.
            torch.backends.cudnn.flags(enabled=True, benchmark=True),
        ):
            self._path = FixedPath(runtime, batch, mask_area)
            for _ in range(WARM_UP_RUNS):
                self._path.run()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                self._graph,
                pool=lane.pool,
                stream=self._compute,
                capture_error_mode="thread_local",  # other threads may use the device meanwhile
            ):
                self._path.run()
            self._slots = [Slot(self._path), Slot(self._path)]
            torch.cuda.synchronize()

    def submit(self, images: Sequence[Tensor], class_names: tuple[str, ...]) -> Pending:
        """Begin with images [H, W, 3] of the sizes that the graph is for; returns at once.

        Waits only where the batch before the last is not yet done.
        """
        path, slot = self._path, self._slots[0]
        self._slots.reverse()
        if slot.pending is not None:
            slot.pending.wait()
        for target, image in zip(path.batch.views(slot.images), images, strict=True):
            target.copy_(image)
        with torch.cuda.stream(self._upload):
            self._upload.wait_event(slot.taken)
            slot.staged.copy_(slot.images, non_blocking=True)
            slot.uploaded.record()
        with torch.cuda.stream(self._compute):
            self._compute.wait_event(slot.uploaded)
            slot.begun.record()
            path.inputs.copy_(slot.staged)
            slot.taken.record()
            self._graph.replay()
            slot.results.memory.copy_(path.results.memory, non_blocking=True)
            slot.done.record()
        slot.pending = Pending(slot, path.batch, class_names)
        return slot.pending


class Graphs:
    """Graphs of one runtime: at most `limit`, those used last."""

    def __init__(self, runtime: Runtime, limit: int = 8) -> None:
        self._runtime, self._limit = runtime, limit
        self._lane = Lane(runtime.device)
        self._graphs: OrderedDict[Batch, GraphedPath | None] = OrderedDict()
        self._refused: set[Batch] = set()

    def of(self, batch: Batch, capture: bool = False) -> GraphedPath | None:
        """The graph for a batch. It is captured now, or when the batch comes a second time.

        A folder of images of all sizes would not be worth its graphs. None without a graph.
        """
        seen = batch in self._graphs
        graph = self._graphs.pop(batch, None)
        if graph is None and (capture or seen) and batch not in self._refused:
            graph = self._capture(batch, MASK_AREA)
        self._keep(batch, graph)
        return graph

    def __len__(self) -> int:
        """How many there are."""
        return sum(graph is not None for graph in self._graphs.values())

    def enlarge(self, batch: Batch, mask_area: float) -> None:
        """Capture a batch's graph again, if there is one, with more room for masks than that."""
        graph = self._graphs.get(batch)
        if graph is not None and graph.mask_area <= mask_area:
            larger = self._capture(batch, 4 * mask_area)
            torch.cuda.synchronize(self._runtime.device)  # a batch may be using the old one
            self._keep(batch, larger)

    def clear(self) -> None:
        """Give up all graphs, and their memory. What they were given is still done."""
        torch.cuda.synchronize(self._runtime.device)
        self._graphs.clear()
        self._lane = Lane(self._runtime.device)
        torch.cuda.empty_cache()

    def _capture(self, batch: Batch, mask_area: float) -> GraphedPath | None:
        """None, now and later, where there is too little memory for what a graph keeps."""
        try:
            return GraphedPath(self._runtime, batch, self._lane, mask_area)
        except torch.cuda.OutOfMemoryError:
            self._refused.add(batch)
        torch.cuda.empty_cache()
        return None

    def _keep(self, batch: Batch, graph: GraphedPath | None) -> None:
        self._graphs[batch] = graph
        while len(self._graphs) > self._limit:
            torch.cuda.synchronize(self._runtime.device)  # nothing may be using it
            self._graphs.popitem(last=False)
