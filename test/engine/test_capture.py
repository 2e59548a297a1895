"""When graphs are captured, grow and are given up: on a CPU, where one computes at once."""

from __future__ import annotations

import gc
import math
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from yolact_ros.detection import DetectionSettings, PackedMasks
from yolact_ros.engine import Segmenter, graphs
from yolact_ros.engine.device import cudnn_benchmark
from yolact_ros.engine.fixed import CANDIDATES, Batch, FixedPath, Plan
from yolact_ros.engine.graphs import Graphs, PendingBatch, Slot
from yolact_ros.engine.runtimes.runtime import Runtime

pytestmark = pytest.mark.usefixtures("one_thread")

FULL = RuntimeError("CUDA error: out of memory")
"""As graphs and pinned memory say it."""
TOO_LARGE = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 36.00 MiB. GPU 0 …")
"""As the device's memory says it."""


class GraphOnCpu:
    """What `GraphedPath` is, without a GPU."""

    made: list[int]
    """Images of each that was captured."""
    runs: list[int]
    """Images of each batch."""
    errors: list[Exception]
    """That the next captures fail with."""
    candidates = CANDIDATES
    too_large = math.inf
    fits = math.inf
    """Bytes of images that there is memory for."""

    def __init__(self, runtime: Runtime, plan: Plan, lane: object, room: int) -> None:
        held = torch.zeros(1)  # as activations are while it is captured
        self.held.append(weakref.ref(held))
        self.room, self.mask_area = room, float(graphs.MASK_AREA)
        self.made.append(plan.images)
        if self.errors:
            raise self.errors.pop(0)
        self.path = FixedPath(runtime, plan, room, self.candidates)

    def submit(self, images: list[Tensor], batch: Batch) -> PendingBatch:
        if batch.image_bytes > self.fits:
            raise TOO_LARGE
        self.runs.append(len(images))
        self.path.prepare(images, batch.numbers())
        self.path.run()
        results = self.path.results.head(batch.mask_bytes(self.mask_area)).to("cpu")
        event = SimpleNamespace(synchronize=lambda: None, elapsed_time=lambda end: 1.0)
        staged = torch.cat([image.flatten() for image in images])
        slot = SimpleNamespace(staged=staged, begun=event, done=event)
        results, names = replace(results, memory=results.memory.clone()), ("a", "b", "c")
        slot.pending = PendingBatch(slot, results, batch, names)
        return slot.pending


@pytest.fixture
def graph(monkeypatch):
    """The class of graphs."""
    monkeypatch.setattr(graphs, "Lane", lambda device: None)
    monkeypatch.setattr(graphs, "ROOMY_SIZE", (60, 90))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    kind = type("Graph", (GraphOnCpu,), {"made": [], "runs": [], "errors": [], "held": []})
    monkeypatch.setattr(graphs, "GraphedPath", kind)
    return kind


@pytest.fixture
def segmenter(small_segmenter, graph):
    small_segmenter._thread = ThreadPoolExecutor(1, "yolact")
    small_segmenter._graphs = Graphs(small_segmenter.runtime)
    return small_segmenter


@pytest.fixture
def images(reference_weights) -> list[Tensor]:
    return [torch.from_numpy(reference_weights.image(60, 90, seed=i)) for i in range(2)]


def is_graphed(instances) -> bool:
    return isinstance(instances.stored_masks, PackedMasks)


def test_a_batch_size_is_captured_when_it_comes_again(segmenter, graph, images):
    assert not is_graphed(segmenter(images[0]))
    assert is_graphed(segmenter(images[0])) and graph.made == [1]
    # Thresholds are read by the same graph.
    found = segmenter(images[0])
    least = float(found.scores[4])
    segmenter.settings = replace(segmenter.settings, score_threshold=least)
    assert segmenter(images[0]).scores.tolist() == found.scores[:4].tolist()
    segmenter.settings = replace(segmenter.settings, confidence_threshold=1.0)
    assert len(segmenter(images[0])) == 0 and graph.made == [1]
    # Other settings need another, at once: images come that many at a time.
    segmenter.settings = replace(segmenter.settings, top_k=3, confidence_threshold=0.05)
    assert is_graphed(segmenter(images[0])) and graph.made == [1, 1]
    graph.runs.clear()
    segmenter.warm_up((60, 90), batch_sizes=(2,))
    assert graph.runs == [2, 2], "a graph has memory for two batches"
    assert all(map(is_graphed, segmenter(images))) and graph.made == [1, 1, 2]


def test_warming_up_runs_graphs_alone_even_if_much_is_found_in_black(segmenter, graph, monkeypatch):
    black = torch.zeros((60, 90, 3), dtype=torch.uint8)
    monkeypatch.setattr(graph, "candidates", 1)
    monkeypatch.setattr(segmenter, "_segment", None)  # the plain path
    segmenter.warm_up((60, 90))
    assert graph.runs == [1, 1]
    with pytest.raises(TypeError, match="NoneType"):
        segmenter(black)


def test_one_thread_does_what_needs_no_graph_and_another_all_captures(segmenter, graph, images):
    """cuDNN chooses its kernels in each thread anew, which would take long in a live frame, and
    does not search in a thread where it chose without."""
    run, threads = segmenter.runtime.run, []

    def note(batch: Tensor):
        threads.append(threading.current_thread().name)
        return run(batch)

    segmenter.runtime = replace(segmenter.runtime, run=note)
    segmenter._graphs._runtime = segmenter.runtime
    with ThreadPoolExecutor(1, "other") as other:
        other.submit(segmenter, images[0]).result()
        segmenter(images)
        assert threads == ["yolact_0"] * 2 and not graph.made
        segmenter._graphs.of(Batch.of(images, segmenter.settings).plan)
    assert threads == ["yolact_0"] * 2 + ["yolact-graphs_0"] and graph.made == [2]


@pytest.mark.parametrize("roomy, captures", [((60, 90), 2), ((600, 900), 1)], ids=str)
def test_room_for_masks_grows(segmenter, graph, images, monkeypatch, roomy, captures):
    """In the same graph, where only less was copied than there is room for."""
    expected = segmenter(images[0])
    monkeypatch.setattr(graphs, "ROOMY_SIZE", roomy)
    monkeypatch.setattr(graphs, "MASK_AREA", 0.05)
    for _ in range(3):  # the first does not fit, and is computed again
        found = segmenter(images[0])
        assert is_graphed(found) and found.boxes.allclose(expected.boxes, atol=1e-3)
        assert (found.masks != expected.masks).float().mean() < 1e-3
        assert graph.made == [1] * captures
    assert graph.runs == [1] * 4


def test_no_room_can_be_made(segmenter, graph, images, monkeypatch):
    expected = segmenter(images[0])
    monkeypatch.setattr(graphs, "MASK_AREA", 0.05)
    settings = segmenter.settings
    segmenter.settings = nothing = replace(settings, score_threshold=1.0)
    segmenter.warm_up((60, 90))
    segmenter.settings = settings
    graph.errors.append(FULL)
    with pytest.warns(RuntimeWarning, match="no CUDA graph .* MiB of masks") as told:
        for _ in range(3):
            found = segmenter(images[0])
            assert not is_graphed(found) and torch.equal(found.masks, expected.masks)
    assert len(told) == 1 and graph.made == [1, 1]
    # The graph that there was has room enough for others.
    segmenter.settings = nothing
    assert is_graphed(segmenter(images[0]))


def test_what_a_caller_does_with_its_memory_does_not_matter(segmenter, graph, images, monkeypatch):
    expected = segmenter(images[1])
    monkeypatch.setattr(graphs, "MASK_AREA", 0.05)
    segmenter.warm_up((60, 90))
    submitted = segmenter.submit(images[1:])
    images[1].zero_()
    (found,) = submitted.result().instances
    assert found.boxes.allclose(expected.boxes, atol=1e-3)


@pytest.mark.parametrize("candidates", [CANDIDATES, 1], ids=["more room", "plain path"])
def test_what_is_done_again_has_the_settings_it_was_given_with(
    segmenter, graph, images, monkeypatch, candidates
):
    expected = segmenter(images[0])
    monkeypatch.setattr(graphs, "MASK_AREA", 0.05)
    monkeypatch.setattr(graph, "candidates", candidates)
    before = segmenter.settings
    segmenter.warm_up((60, 90))
    submitted = segmenter.submit(images[:1])
    segmenter.settings = replace(before, top_k=2, score_threshold=0.9)
    (found,) = submitted.result().instances
    assert is_graphed(found) == (candidates > 1)
    assert found.boxes.allclose(expected.boxes, atol=1e-3)
    assert graph.made == ([1, 1] if candidates > 1 else [1]), "room alone does not help the other"


@pytest.mark.parametrize("error", [FULL, KeyError("what a compiler raises")], ids=str)
def test_a_capture_that_fails_is_not_repeated_and_leaves_nothing(
    segmenter, graph, images, monkeypatch, error
):
    graph.errors.append(error)
    room, rooms = graphs.first_room, []
    monkeypatch.setattr(graphs, "first_room", lambda *given: rooms.append(given) or room(*given))
    monkeypatch.setattr(graphs.gc, "collect", lambda: 0)  # without its help
    gc.disable()
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            segmenter.warm_up((60, 90))
            assert not is_graphed(segmenter(images[0])) and graph.made == [1]
            assert len(rooms) == 1, "nothing is looked for that is not used"
        error.__traceback__ = None
        deadline = time.monotonic() + 5  # the thread forgets its task
        while graph.held[0]() is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert graph.held[0]() is None
    finally:
        gc.enable()
    (text,) = [str(each.message) for each in told if each.category is RuntimeWarning]
    assert "no CUDA graph for batches of 1" in text
    reason = "cpu has too little memory: how much an image takes is not known, and "
    assert (reason if error is FULL else str(error)) in text


def test_a_capture_that_did_not_fit_is_tried_when_that_may_have_changed(segmenter, graph, images):
    graph.errors += [TOO_LARGE] * 2
    with pytest.warns(
        RuntimeWarning, match=r"batches of 2 .*an image takes 18 MiB or more"
    ) as told:
        segmenter.warm_up((60, 90), batch_sizes=(2,))
        assert not any(map(is_graphed, segmenter(images))) and graph.made == [2]
    assert len(told) == 1
    with pytest.warns(RuntimeWarning, match="batches of 2"):  # when it is asked for
        segmenter.warm_up((60, 90), batch_sizes=(2,))
    segmenter.warm_up((60, 90))
    segmenter._graphs.clear()  # which frees what the other took
    assert all(map(is_graphed, segmenter(images))) and graph.made == [2, 2, 1, 2]
    # What is wrong with a graph itself stays wrong.
    graph.errors.append(KeyError("what a compiler raises"))
    settings = replace(segmenter.settings, top_k=3)
    with pytest.warns(RuntimeWarning, match="what a compiler raises"):
        assert segmenter._graphs.of(Plan.of(2, settings)) is None
    segmenter._graphs.clear()
    assert segmenter._graphs.of(Plan.of(2, settings), capture=True) is None


def test_images_that_do_not_fit_are_not_tried_again(segmenter, graph, images, monkeypatch):
    segmenter.warm_up((60, 90))
    graph.runs.clear()
    monkeypatch.setattr(graph, "fits", 60 * 90 * 3)
    large = images[0].repeat(2, 1, 1)
    with pytest.warns(RuntimeWarning, match=r"0\.0 MiB of images .* takes 36 MiB or more") as told:
        assert not is_graphed(segmenter(large))
    assert len(told) == 1
    monkeypatch.setattr(graph, "fits", math.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert not is_graphed(segmenter(large)) and not graph.runs
        assert is_graphed(segmenter(images[0])) and graph.runs == [1]
        segmenter._graphs.clear()
        assert is_graphed(segmenter(large))


def limit_memory(segmenter: Segmenter, most: int, monkeypatch) -> None:
    """An image and a graph take one of the device's memory each, as far as the plain path goes."""
    plain = segmenter._segment

    def segment(images: list[Tensor], settings: DetectionSettings):
        captured = 0 if segmenter._graphs is None else len(segmenter._graphs)
        if len(images) + captured > most:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        return plain(images, settings)

    monkeypatch.setattr(segmenter, "_segment", segment)


def test_large_batches_beside_graphs(segmenter, graph, images, monkeypatch):
    """They do not take turns in giving up each other's memory."""
    limit_memory(segmenter, 2, monkeypatch)
    segmenter.warm_up((60, 90))
    with pytest.warns(RuntimeWarning, match="batches of 2: .*batches have 1 images at most"):
        segmenter(images)
    graph.made.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for _ in range(3):
            assert is_graphed(segmenter(images[0]))
            assert all(map(is_graphed, segmenter(images)))
    assert graph.made == [1]


def test_graphs_are_given_up_where_nothing_fits_beside_them(segmenter, graph, images, monkeypatch):
    limit_memory(segmenter, 1, monkeypatch)
    monkeypatch.setattr(graph, "candidates", 1)  # so that the plain path is needed
    segmenter.settings = replace(segmenter.settings, top_k=3)
    with pytest.warns(RuntimeWarning, match="too little memory for CUDA graphs") as told:
        segmenter.warm_up((60, 90))
        for _ in range(4):
            assert len(segmenter(images[0])) == 3
    assert len([each for each in told if "too little" in str(each.message)]) == 1


def test_graphs_that_are_given_up_are_gone(segmenter, graph, images, monkeypatch):
    """Before the batch is tried without them, nothing holds their memory any more."""
    segmenter.warm_up((60, 90))
    kept = weakref.ref(segmenter._graphs.of(Plan.of(1, segmenter.settings)))
    plain = segmenter._segment

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: out of memory")  # of a larger image than before

    monkeypatch.setattr(graph, "submit", fail)
    monkeypatch.setattr(segmenter, "_segment", lambda *args: (kept() and fail(), plain(*args))[1])
    with pytest.warns(RuntimeWarning, match="too little memory for CUDA graphs"):
        assert len(segmenter(images[0])) == 10


def test_a_slot_has_both_rooms_or_those_that_it_had(small_segmenter, monkeypatch):
    allocate, left = torch.empty, [100]

    def empty(*args, pin_memory: bool = False, **options) -> Tensor:
        if not pin_memory and not left:
            raise FULL
        return allocate(*args, **options)

    batch = Batch(((60, 90),), small_segmenter.settings)
    path = FixedPath(small_segmenter.runtime, batch.plan, 100)
    monkeypatch.setattr(torch, "empty", empty)
    slot = Slot(path)
    slot.make_room(10)
    left.clear()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            slot.make_room(20)
        assert len(slot.images) == len(slot.staged) == 10
    left.append(100)
    slot.make_room(20)
    assert len(slot.images) == len(slot.staged) == 20


def test_the_search_for_kernels_sets_nothing_else(monkeypatch):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "allow_tf32", False)
    monkeypatch.setattr(cudnn, "deterministic", True)
    before = cudnn.benchmark
    with pytest.raises(KeyError), cudnn_benchmark():
        assert cudnn.benchmark and cudnn.deterministic and not cudnn.allow_tf32
        raise KeyError
    assert cudnn.benchmark == before
