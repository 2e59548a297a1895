"""Fixed-shape paths, captured as CUDA graphs.

A whole batch is launched at once, and the next images are prepared while the GPU computes.
"""

from __future__ import annotations

import contextlib
import gc
import math
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from yolact_ros.detection import Instances
from yolact_ros.detection.regions import packs_by_kernel
from yolact_ros.detection.results import Results
from yolact_ros.engine.device import (
    capture_lock,
    cudnn_benchmark,
    garbage_collection_disabled,
)
from yolact_ros.engine.failures import (
    MemoryNeed,
    allocated,
    is_out_of_memory,
    responds,
)
from yolact_ros.engine.fixed import Batch, FixedPath, Plan
from yolact_ros.engine.runtimes.runtime import Runtime

MASK_AREA = 8
"""Capacity for masks copied to the host, in multiples of the image area. A batch that needs more
enlarges it for later batches."""

ROOMY_SIZE = (1080, 1920)
"""(height, width) of the largest images that a new graph has buffers for, including `MASK_AREA` of
masks."""

SMALL_SIZE, SMALL_MASK_AREA = (480, 640), 2
"""Image size and mask area for devices where unused capacity costs time."""

WARM_UP_RUNS = 2
"""Eager runs before a capture, in which libraries choose kernels and allocate workspaces."""


class Slot:
    """Buffers for one batch in flight: pinned on the host, and staging on the device."""

    def __init__(self, path: FixedPath) -> None:
        device, shape = path.runtime.device, (path.plan.images + 1, 4)
        self.images = torch.empty(0, dtype=torch.uint8, device="cpu", pin_memory=True)
        self.staged = torch.empty(0, dtype=torch.uint8, device=device)
        self.numbers = torch.empty(shape, dtype=torch.float32, device="cpu", pin_memory=True)
        self.staged_numbers = torch.empty(shape, dtype=torch.float32, device=device)
        self.results = path.results.on_host()
        self.uploaded, self.taken = torch.cuda.Event(), torch.cuda.Event()
        self.begun, self.done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.pending: PendingBatch | None = None
        self.sources: list[Tensor] = []
        """Images on the device that are being copied. They are kept meanwhile, not marked with
        `record_stream`: freeing memory so marked aborts the process once the device is lost."""

    def make_room(self, size: int) -> None:
        """Grow the buffers to `size` bytes, on the current stream; the slot must be idle."""
        if len(self.staged) < size:
            with torch.inference_mode(False):  # inference tensors cannot be written to outside it
                images = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)
                staged = torch.empty(size, dtype=torch.uint8, device=self.staged.device)
            self.images, self.staged = images, staged  # both or, if memory is short, neither


@dataclass(frozen=True)
class UnfinishedBatch:
    """A batch for which a graph did not return all results."""

    batch: Batch
    images: list[Tensor]
    """On the host."""
    mask_bytes: int
    """Bytes that the masks need, if the capacity was too small; 0 if more would not help."""


class PendingBatch:
    """Results that the device is still computing."""

    def __init__(
        self, slot: Slot, results: Results, batch: Batch, class_names: tuple[str, ...]
    ) -> None:
        self._slot, self._results = slot, results
        self._batch, self._class_names = batch, class_names
        self._outcome: list[Instances] | UnfinishedBatch | None = None
        self.milliseconds = 0.0
        """Time that the device computed; set by `wait`."""

    def is_done(self) -> bool:
        """Whether `wait` would return, or raise, at once."""
        if self._slot.pending is not self:
            return True
        try:
            return self._slot.done.query()
        except RuntimeError:  # the device is lost
            return True

    def wait(self) -> list[Instances] | UnfinishedBatch:
        """Wait for the results and return the instances on the CPU."""
        if self._outcome is None:
            slot = self._slot
            slot.done.synchronize()
            slot.sources = []
            self.milliseconds = slot.begun.elapsed_time(slot.done)
            self._outcome = self._read()
            slot.pending = None
        return self._outcome

    def _read(self) -> list[Instances] | UnfinishedBatch:
        results, batch = self._results, self._batch
        missing, complete = results.missing_bytes(), results.is_complete()
        if complete and not missing:
            return results.instances(batch.image_sizes, self._class_names)
        # The caller may have reused its memory, and the slot's will be reused.
        images = [part.cpu() for part in batch.parts(self._slot.staged)]
        return UnfinishedBatch(batch, images, len(results.bits) + missing if complete else 0)


class Lane:
    """Streams and memory pool shared by graphs, of which no two run at once.

    A failed capture starts a new lane; existing graphs keep theirs.
    """

    def __init__(self, device: torch.device) -> None:
        self.compute, self.upload = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        """Memory for the graphs' intermediate tensors."""


class GraphedPath:
    """A `FixedPath` as a CUDA graph, double-buffered: one batch computes, the next is prepared."""

    def __init__(self, runtime: Runtime, plan: Plan, lane: Lane, room: int) -> None:
        """Capture the graph, with `room` for that many bytes of masks."""
        self.room, self.mask_area = room, float(MASK_AREA)
        self.too_large = math.inf
        """Bytes of a batch's images that did not fit into memory."""
        self._compute, self._upload = lane.compute, lane.upload
        with torch.cuda.device(runtime.device):
            self._compute.wait_stream(torch.cuda.current_stream())  # which wrote the weights
            with torch.cuda.stream(self._compute):
                # All shapes are fixed, so benchmarking pays off; it must happen before the capture.
                with cudnn_benchmark():
                    self._path = FixedPath(runtime, plan, room)
                    for _ in range(WARM_UP_RUNS):
                        self._path.run()
                self._graph = torch.cuda.CUDAGraph()
                with (
                    garbage_collection_disabled(),
                    torch.cuda.graph(
                        self._graph,
                        pool=lane.pool,
                        stream=self._compute,
                        capture_error_mode="thread_local",  # other threads may use the device
                    ),
                ):
                    self._path.run()
            self._slots = [Slot(self._path), Slot(self._path)]
            with torch.cuda.stream(self._upload):
                for slot in self._slots:
                    slot.make_room(Batch((ROOMY_SIZE,) * plan.images, plan.settings).image_bytes)
            torch.cuda.synchronize()

    def submit(self, images: Sequence[Tensor], batch: Batch) -> PendingBatch:
        """Launch a batch of images [H, W, 3] that fits the graph's plan; returns at once.

        Waits only if the batch before the last is not done yet.
        """
        path, slot = self._path, self._slots[0]
        self._slots.reverse()
        if slot.pending is not None:
            slot.pending.wait()
        self._begin_upload(slot, images, batch)
        results = slot.results.head(batch.mask_bytes(self.mask_area))
        with torch.cuda.device(path.runtime.device), torch.cuda.stream(self._compute):
            self._compute.wait_event(slot.uploaded)
            slot.begun.record()
            path.prepare(batch.views(slot.staged), slot.staged_numbers)
            slot.taken.record()
            self._graph.replay()
            results.memory.copy_(path.results.memory[: len(results.memory)], non_blocking=True)
            slot.done.record()
        slot.pending = PendingBatch(slot, results, batch, path.runtime.config.class_names)
        return slot.pending

    def _begin_upload(self, slot: Slot, images: Sequence[Tensor], batch: Batch) -> None:
        """Copy images to the device; those on the host go through pinned memory."""
        device = slot.staged.device
        maker = torch.cuda.current_stream(device)
        with torch.cuda.device(device), torch.cuda.stream(self._upload):
            slot.make_room(batch.image_bytes)
            self._upload.wait_event(slot.taken)
            slot.numbers.copy_(batch.numbers())
            slot.staged_numbers.copy_(slot.numbers, non_blocking=True)
            places = zip(batch.parts(slot.images), batch.parts(slot.staged), images, strict=True)
            for pinned, staged, image in places:
                if image.is_cuda:
                    self._upload.wait_stream(maker)
                    slot.sources.append(image)
                    staged.copy_(image, non_blocking=True)
                else:
                    pinned.copy_(image)
                    staged.copy_(pinned, non_blocking=True)
            slot.uploaded.record()


def first_room(plan: Plan, runtime: Runtime) -> int:
    """Return the bytes of masks that a new graph has room for.

    The Triton kernel stops where the masks end; its PyTorch twin always fills the whole room, which
    is therefore small at first.
    """
    size, area = ROOMY_SIZE, MASK_AREA
    if runtime.device.type == "cuda":
        with torch.cuda.device(runtime.device):
            masks = plan.images * plan.settings.top_k
            if not packs_by_kernel(runtime.device, runtime.dtype, masks):
                size, area = SMALL_SIZE, SMALL_MASK_AREA
    batch = Batch((size,) * plan.images, plan.settings)
    return batch.mask_bytes(min(area, plan.settings.top_k))


_MAX_GRAPHS = 16


class Graphs:
    """The graphs of one runtime, all captured in one thread; an LRU cache."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._thread = ThreadPoolExecutor(1, "yolact-graphs")
        self._lane = Lane(runtime.device)
        self._graphs: OrderedDict[Plan, GraphedPath] = OrderedDict()
        self._seen: set[int] = set()
        self._refused: set[Plan] = set()
        self._did_not_fit: set[Plan] = set()

    def submit(self, images: Sequence[Tensor], batch: Batch) -> PendingBatch | None:
        """Launch a batch; return None if it has no graph or its images are too large for it."""
        graph = self.of(batch.plan)
        if graph is None or batch.image_bytes >= graph.too_large:
            return None
        device = self._runtime.device
        try:
            return graph.submit(images, batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            need = MemoryNeed.of(error, len(images), device, allocated(device))
        graph.too_large = batch.image_bytes
        warnings.warn(
            f"{device} has too little memory for {batch.image_bytes / 2**20:.1f} MiB of images "
            f"beside their CUDA graph: {need}; so large ones take longer from now on",
            RuntimeWarning,
            stacklevel=3,
        )
        return None

    def of(self, plan: Plan, capture: bool = False) -> GraphedPath | None:
        """Return the graph for a plan, or None.

        It is captured at once if `capture`, else when a batch of this size comes a second time: a
        single batch is not worth a graph.
        """
        if not plan.has_fixed_shapes:
            return None
        if capture:
            self._did_not_fit.discard(plan)
        if plan in self._graphs:
            self._graphs.move_to_end(plan)
        elif capture or plan.images in self._seen:
            self._capture(plan)
        self._seen.add(plan.images)
        return self._graphs.get(plan)

    def __len__(self) -> int:
        """Return the number of graphs."""
        return len(self._graphs)

    def make_room(self, batch: Batch, mask_bytes: int) -> bool:
        """Make room for `mask_bytes` in a batch's graph, recaptured if necessary; return success.

        A recaptured graph has room for twice as much, up to the most that masks can take.
        """
        plan = batch.plan
        area = min(2 * mask_bytes / batch.mask_bytes(1), plan.settings.top_k)
        if plan in self._graphs and self._graphs[plan].room < mask_bytes:
            self._capture(plan, batch.mask_bytes(area))
        graph = self._graphs.get(plan)
        if graph is None or graph.room < mask_bytes:
            return False
        graph.mask_area = max(graph.mask_area, area)
        return True

    def clear(self) -> None:
        """Finish submitted batches, then release all graphs and their memory."""
        with capture_lock(self._runtime.device):
            torch.cuda.synchronize(self._runtime.device)
        if self._graphs:  # the freed memory may suffice for others
            self._did_not_fit.clear()
        self._graphs.clear()
        self._renew_lane()

    def _capture(self, plan: Plan, room: int = 0) -> None:
        """Capture the graph of a plan with `room` bytes for masks; 0: `first_room`.

        If that fails, it warns, and the plain path is used instead. The capture is not retried
        unless memory was short and may have become available.
        """
        if plan in self._refused | self._did_not_fit:
            return
        device = self._runtime.device
        before = allocated(device)
        try:
            room = room or first_room(plan, self._runtime)
            # Do not name the future: it and its exception's traceback would form a reference cycle
            # that keeps everything allocated.
            with capture_lock(device):
                graph = self._thread.submit(
                    GraphedPath, self._runtime, plan, self._lane, room
                ).result()
        except Exception as error:
            if is_out_of_memory(error):
                self._did_not_fit.add(plan)
                need = MemoryNeed.of(error, plan.images, device, before)
                reason = f"{device} has too little memory: {need}"
            elif responds(device):
                self._refused.add(plan)
                reason = str(error)
            else:
                raise
        else:
            with capture_lock(device):
                torch.cuda.synchronize(device)  # evicted graphs must not be in use
            self._graphs[plan] = graph
            while len(self._graphs) > _MAX_GRAPHS:
                self._graphs.popitem(last=False)
            return
        self._renew_lane()
        masks = f" with {room / 2**20:.1f} MiB of masks" if room else ""
        warnings.warn(
            f"no CUDA graph for batches of {plan.images}{masks}, so they take longer: {reason}",
            RuntimeWarning,
            stacklevel=3,
        )

    def _renew_lane(self) -> None:
        """Start a new lane, since a failed capture spoils the pool, and free unused memory."""
        self._lane = Lane(self._runtime.device)
        gc.collect()
        # In older PyTorch, a capture that another thread made invalid never ends for the allocator.
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
