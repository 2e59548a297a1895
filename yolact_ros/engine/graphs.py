"""The path in fixed shapes, from uint8 images to results; on CUDA captured as a graph.

Nothing in it depends on what the images show, and the host reads nothing before the end. So a GPU
can be given all of it at once, and the next images can be prepared while it computes. Images are
brought to the network's size before the graph, which serves images of all sizes therefore.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from yolact_ros.detection import DetectionSettings, Instances, detect
from yolact_ros.detection.detections import class_scores
from yolact_ros.detection.instances import Placed, image_scales, place
from yolact_ros.detection.masks import make_masks
from yolact_ros.detection.results import Results
from yolact_ros.engine.failures import answers
from yolact_ros.engine.preprocess import preprocess
from yolact_ros.engine.runtimes.runtime import Runtime
from yolact_ros.network import Predictions

ImageSizes = tuple[tuple[int, int], ...]
"""(height, width) of each image of a batch."""

MASK_AREA = 8
"""Room for masks: so many times the image's area. Where that is too little, the plain path makes
the masks of those images, and there is more room from the next on."""

ROOMY_SIZE = (1080, 1920)
"""(height, width) of images up to which a graph has that room."""

CANDIDATES = 2048
"""Anchors of an image that detection looks at: those of the best scores. Where others could have
changed what is found, the plain path takes over; so many never matter in photographs."""

WARM_UP_RUNS = 2
"""Eager runs before a capture: libraries choose their kernels and take their memory in them."""


@dataclass(frozen=True)
class Plan:
    """What a graph is captured for: everything that its shapes and constants come from."""

    images: int
    settings: DetectionSettings

    @property
    def has_fixed_shapes(self) -> bool:
        return self.settings.nms_method != "standard"


@dataclass(frozen=True)
class Batch:
    """Images of any sizes, and what is to be found in them."""

    image_sizes: ImageSizes
    settings: DetectionSettings

    @classmethod
    def of(cls, images: Sequence[Tensor], settings: DetectionSettings) -> Batch:
        """Of images [H, W, 3]."""
        return cls(tuple((image.shape[0], image.shape[1]) for image in images), settings)

    @property
    def plan(self) -> Plan:
        return Plan(len(self.image_sizes), self.settings)

    @property
    def image_bytes(self) -> int:
        return sum(3 * height * width for height, width in self.image_sizes)

    def mask_bytes(self, area: float) -> int:
        """Bytes of masks, one bit a pixel, that cover `area` times the images."""
        return int(area * sum(h * ((w + 7) // 8) for h, w in self.image_sizes))

    def scales(self) -> Tensor:
        """What the path in fixed shapes has to know of the sizes, float32 [B, 1, 4]."""
        return torch.tensor(image_scales(self.image_sizes), dtype=torch.float32)

    def parts(self, flat: Tensor) -> list[Tensor]:
        """The images [H, W, 3] that lie in flat bytes, or in the first of them."""
        parts = flat[: self.image_bytes].split([3 * h * w for h, w in self.image_sizes])
        return [part.view(*size, 3) for part, size in zip(parts, self.image_sizes, strict=True)]

    def views(self, flat: Tensor) -> list[Tensor] | Tensor:
        """The same; as one tensor [B, H, W, 3] where they are of one size."""
        if len(set(self.image_sizes)) == 1:
            return flat[: self.image_bytes].view(-1, *self.image_sizes[0], 3)
        return self.parts(flat)


class FixedPath:
    """From the network's `inputs` to `results`, on the device of a runtime that gives
    `Predictions`."""

    @torch.no_grad()
    def __init__(
        self, runtime: Runtime, plan: Plan, mask_bytes: int, candidates: int = CANDIDATES
    ) -> None:
        self.runtime, self.plan, self._candidates = runtime, plan, candidates
        device, side = runtime.device, runtime.config.image_size
        self.inputs = torch.zeros((plan.images, 3, side, side), dtype=runtime.dtype, device=device)
        self.inputs = self.inputs.contiguous(memory_format=torch.channels_last)
        self._scales = torch.ones((plan.images, 1, 4), device=device)
        self.results = Results.allocate(self._place()[0], mask_bytes)

    @torch.no_grad()
    def prepare(self, images: Sequence[Tensor] | Tensor, scales: Tensor) -> None:
        """Take images, uint8 [H, W, 3], on the device, and `Batch.scales` of them."""
        preprocess(images, self.runtime.config, self.runtime.dtype, out=self.inputs)
        self._scales.copy_(scales, non_blocking=True)

    @torch.no_grad()
    def run(self) -> None:
        """From what was prepared to `results`; in the same shapes whatever the images show."""
        placed, complete = self._place()
        self.results.write(placed, self._scales, complete)

    def _place(self) -> tuple[Placed, Tensor]:
        """What is found, and for each image whether it is what all anchors would have given."""
        runtime, settings = self.runtime, self.plan.settings
        predictions = runtime(self.inputs)
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

    Returns their predictions, the anchors [B, N, 4], and what no other scores more than [B].
    """
    _, best = class_scores(predictions.class_logits)
    chosen, index = best.topk(min(count, best.shape[1]), sorted=False)
    rest = chosen.amin(dim=1) if count < best.shape[1] else torch.full_like(chosen[:, 0], -1)
    rows = index.unsqueeze(-1)

    def take(values: Tensor) -> Tensor:
        return values.gather(1, rows.expand(-1, -1, values.shape[-1]))

    coefficients = predictions.coefficients
    taken = Predictions(
        class_logits=take(predictions.class_logits),
        box_offsets=take(predictions.box_offsets),
        coefficients=None if coefficients is None else take(coefficients),
        prototypes=predictions.prototypes,
    )
    return taken, anchors[index], rest


class Slot:
    """Memory for one batch on its way: pinned on the host, and staged on the device."""

    def __init__(self, path: FixedPath) -> None:
        self.images = torch.empty(0, dtype=torch.uint8, pin_memory=True)
        self.staged = torch.empty(0, dtype=torch.uint8, device=path.runtime.device)
        self.results = path.results.on_host()
        self.uploaded, self.taken = torch.cuda.Event(), torch.cuda.Event()
        self.begun, self.done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.pending: Pending | None = None

    def make_room(self, size: int) -> None:
        """For images of so many bytes, on the current stream, when nothing uses the slot."""
        if len(self.images) < size:
            self.images = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            self.staged = torch.empty(size, dtype=torch.uint8, device=self.staged.device)


class Pending:
    """Results that the device is working on."""

    def __init__(
        self,
        slot: Slot,
        mask_area: float,
        results: Results,
        batch: Batch,
        class_names: tuple[str, ...],
    ) -> None:
        self._slot, self._results = slot, results
        self._batch, self._class_names = batch, class_names
        self.mask_area = mask_area
        """Room for masks, so many times the images' area."""
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
            results = self._results
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

    def __init__(self, runtime: Runtime, plan: Plan, lane: Lane, mask_area: float) -> None:
        device = runtime.device
        self.mask_area = mask_area
        self._compute, self._upload = lane.compute, lane.upload
        room = Batch((ROOMY_SIZE,) * plan.images, plan.settings).mask_bytes(mask_area)
        with (
            torch.cuda.device(device),
            # The sizes of all layers are fixed: let cuDNN try its kernels once.
            torch.backends.cudnn.flags(enabled=True, benchmark=True),
        ):
            self._compute.wait_stream(torch.cuda.current_stream())  # the weights come from there
            with torch.cuda.stream(self._compute):
                self._path = FixedPath(runtime, plan, room)
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

    def submit(
        self, images: Sequence[Tensor], batch: Batch, class_names: tuple[str, ...]
    ) -> Pending:
        """Begin with a batch of images [H, W, 3] that the graph is for; returns at once.

        Waits only where the batch before the last is not yet done.
        """
        path, slot = self._path, self._slots[0]
        self._slots.reverse()
        if slot.pending is not None:
            slot.pending.wait()
        self._begin_upload(slot, images, batch)
        results = slot.results.head(batch.mask_bytes(self.mask_area))
        with torch.cuda.stream(self._compute):
            self._compute.wait_event(slot.uploaded)
            slot.begun.record()
            path.prepare(batch.views(slot.staged), batch.scales())
            slot.taken.record()
            self._graph.replay()
            results.memory.copy_(path.results.memory[: len(results.memory)], non_blocking=True)
            slot.done.record()
        slot.pending = Pending(slot, self.mask_area, results, batch, class_names)
        return slot.pending

    def _begin_upload(self, slot: Slot, images: Sequence[Tensor], batch: Batch) -> None:
        """Images on the host go by way of pinned memory; others, as nvJPEG makes them, do not."""
        maker = torch.cuda.current_stream(slot.staged.device)
        with torch.cuda.stream(self._upload):
            slot.make_room(batch.image_bytes)
            self._upload.wait_event(slot.taken)
            places = zip(batch.parts(slot.images), batch.parts(slot.staged), images, strict=True)
            for pinned, staged, image in places:
                if image.is_cuda:
                    self._upload.wait_stream(maker)
                    image.record_stream(self._upload)
                    staged.copy_(image, non_blocking=True)
                else:
                    pinned.copy_(image)
                    staged.copy_(pinned, non_blocking=True)
            slot.uploaded.record()


class Graphs:
    """Graphs of one runtime: at most `limit`, those used last."""

    def __init__(self, runtime: Runtime, limit: int = 16) -> None:
        self._runtime, self._limit = runtime, limit
        self._lane = Lane(runtime.device)
        self._graphs: OrderedDict[Plan, GraphedPath] = OrderedDict()
        self._seen: set[Plan] = set()
        self._refused: set[Plan] = set()
        # One thread for all captures: cuDNN remembers by thread which kernels were fastest.
        self._thread = ThreadPoolExecutor(1, "capture")

    def of(self, plan: Plan, capture: bool = False) -> GraphedPath | None:
        """The graph for a plan. It is captured now, or when the plan comes a second time.

        A single image would not be worth its graph. None without a graph.
        """
        if plan in self._graphs:
            self._graphs.move_to_end(plan)
        elif (capture or plan in self._seen) and plan not in self._refused:
            self._keep(plan, self._capture(plan, MASK_AREA))
        self._seen.add(plan)
        return self._graphs.get(plan)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._graphs)

    def enlarge(self, plan: Plan, mask_area: float) -> None:
        """Capture a plan's graph again, if there is one, with more room for masks than that."""
        graph = self._graphs.get(plan)
        if graph is not None and graph.mask_area <= mask_area:
            larger = self._capture(plan, 4 * mask_area)
            torch.cuda.synchronize(self._runtime.device)  # a batch may be using the old one
            del self._graphs[plan]
            self._keep(plan, larger)

    def clear(self) -> None:
        """Give up all graphs, and their memory. What they were given is still done."""
        torch.cuda.synchronize(self._runtime.device)
        self._graphs.clear()
        self._lane = Lane(self._runtime.device)
        torch.cuda.empty_cache()

    def _capture(self, plan: Plan, mask_area: float) -> GraphedPath | None:
        """None, now and later, where that fails: the plain path does the same without graphs."""
        try:
            making = self._thread.submit(GraphedPath, self._runtime, plan, self._lane, mask_area)
            return making.result()
        except torch.cuda.OutOfMemoryError:
            pass
        except RuntimeError as error:
            if not answers(self._runtime.device):
                raise
            warnings.warn(
                f"no CUDA graph for batches of {plan.images}, which takes them longer: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            self._lane = Lane(self._runtime.device)  # a capture that broke off spoils its pool
        self._refused.add(plan)
        torch.cuda.empty_cache()
        return None

    def _keep(self, plan: Plan, graph: GraphedPath | None) -> None:
        if graph is None:
            return
        self._graphs[plan] = graph
        while len(self._graphs) > self._limit:
            torch.cuda.synchronize(self._runtime.device)  # nothing may be using it
            self._graphs.popitem(last=False)
