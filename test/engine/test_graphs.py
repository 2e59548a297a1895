"""The path in fixed shapes finds what the plain path finds."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from yolact_ros.detection import Instances, PackedMasks, SmallMasks
from yolact_ros.engine import Segmenter, graphs
from yolact_ros.engine.device import garbage_collection_disabled
from yolact_ros.engine.fixed import CANDIDATES, Batch, FixedPath, Plan
from yolact_ros.engine.graphs import GraphedPath, Lane
from yolact_ros.network import build, official_name, save_weights

pytestmark = pytest.mark.usefixtures("one_thread")


def test_no_garbage_is_collected_during_a_capture():
    """A graph that is collected meanwhile would break it off."""
    gone = weakref.finalize(garbage := type("Garbage", (), {})(), lambda: None)
    garbage.itself = garbage
    with garbage_collection_disabled():
        del garbage
        blocks = [[[]] for _ in range(200_000)]  # many times as many as start a collection
        assert gone.alive and len(blocks) == 200_000
    assert gc.isenabled()
    gc.collect()
    assert not gone.alive
    gc.disable()
    try:
        with garbage_collection_disabled():
            pass
        assert not gc.isenabled(), "as it was"
    finally:
        gc.enable()


def path_for(
    segmenter: Segmenter, batch: Batch, area: float = 20, candidates: int = CANDIDATES
) -> FixedPath:
    return FixedPath(segmenter.runtime, batch.plan, batch.mask_bytes(area), candidates)


def run(path: FixedPath, images: list[Tensor], segmenter: Segmenter) -> list[Instances]:
    batch = Batch.of(images, segmenter.settings)
    path.prepare(images, batch.numbers())
    path.run()
    assert path.results.missing_bytes() == 0 and path.results.is_complete()
    return path.results.instances(batch.image_sizes, segmenter.class_names)


def assert_same(ours: Instances, plain: Instances) -> None:
    assert len(ours) == len(plain) > 0
    torch.testing.assert_close(ours.boxes, plain.boxes, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(ours.scores, plain.scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.mask_scores, plain.mask_scores, rtol=1e-4, atol=1e-5)
    assert torch.equal(ours.class_ids, plain.class_ids)
    assert isinstance(ours.stored_masks, PackedMasks)
    found, expected = ours.regions(), plain.regions()
    assert torch.equal(found.rectangles, expected.rectangles)
    assert torch.equal(found.offsets, expected.offsets)
    # But for samples within rounding of one half, of which untrained networks have many.
    clear = (samples(plain) - 0.5).abs() > 1e-5
    assert torch.equal(found.pixels[clear], expected.pixels[clear])
    assert found.pixels.any() and clear.float().mean() > 0.8


def samples(instances: Instances) -> Tensor:
    """What is compared with one half at each pixel of the regions, flat."""
    grids = instances.stored_masks
    assert isinstance(grids, SmallMasks)
    images = F.interpolate(grids.values[None], size=instances.image_size, mode="bilinear")[0]
    windows = zip(images, instances.regions().rectangles.tolist(), strict=True)
    return torch.cat([image[y1:y2, x1:x2].flatten() for image, (x1, y1, x2, y2) in windows])


@pytest.fixture(scope="module")
def photos(repository: Path) -> list[Tensor]:
    """Two of the demonstration's photographs, at a quarter of their resolution."""
    paths = sorted((repository / "yolact_ros" / "demo" / "photos").glob("*.jpg"))[-2:]
    assert len(paths) == 2
    images = [cv2.resize(cv2.imread(str(path)), None, fx=0.25, fy=0.25) for path in paths]
    return [torch.from_numpy(image) for image in images]


@pytest.fixture
def images(reference_weights) -> list[Tensor]:
    sizes = [(60, 90), (60, 90), (71, 58)]
    return [
        torch.from_numpy(reference_weights.image(*size, seed=i)) for i, size in enumerate(sizes)
    ]


def test_the_embedded_model_on_photographs(photos):
    segmenter = Segmenter(device="cpu", backend="torch", score_threshold=0.1)
    plain = segmenter(photos)
    assert sum(map(len, plain)) > 1
    path = path_for(segmenter, Batch.of(photos, segmenter.settings), area=2)
    for ours, theirs in zip(run(path, photos, segmenter), plain, strict=True):
        if len(theirs):
            assert_same(ours, theirs)
        else:
            assert len(ours) == 0 and ours.masks.shape == theirs.masks.shape


@pytest.mark.parametrize(
    "count, changes",
    [
        (1, {}),
        (2, {"nms_method": "cross_class", "top_k": 3}),
        (3, {"class_ids": (1, 2), "score_threshold": 0.0}),
        (3, {"nms_top_k": 5, "nms_iou_threshold": 0.3}),
    ],
    ids=str,
)
def test_every_setting(small_segmenter, images, count, changes):
    small_segmenter.settings = replace(small_segmenter.settings, **changes)
    path = path_for(small_segmenter, Batch.of(images[:count], small_segmenter.settings))
    found = run(path, images[:count], small_segmenter)
    for ours, plain in zip(found, small_segmenter(images[:count]), strict=True):
        assert_same(ours, plain)
    # The same memory serves the next images, of other sizes; what was found before stays.
    before = found[0].boxes.clone(), found[0].masks
    others = [255 - image[7:, : 40 + 9 * i] for i, image in enumerate(images[:count])]
    changed = run(path, others, small_segmenter)
    assert not torch.equal(changed[0].scores, found[0].scores)
    for ours, plain in zip(changed, small_segmenter(others), strict=True):
        assert_same(ours, plain)
    assert torch.equal(found[0].boxes, before[0]) and torch.equal(found[0].masks, before[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"mask_rescoring": True, "image_size": 256},
        {"mask_branch": "fc"},
        {"mask_branch": "none"},
        {"backbone": "resnet50", "dcn_variant": "interval4"},
    ],
    ids=str,
)
def test_every_kind_of_network(small_config, reference_weights, images, changes, tmp_path):
    config = small_config.replace(**changes)
    net = build(config)
    for name, tensor in net.state_dict().items():
        values = reference_weights.fill(official_name(name), tuple(tensor.shape))
        tensor.copy_(torch.from_numpy(values))
    path = tmp_path / "weights.safetensors"
    save_weights(net, path)
    segmenter = Segmenter("", path, device="cpu", backend="torch", score_threshold=0.2, top_k=10)
    path = path_for(segmenter, Batch.of(images, segmenter.settings))
    found = run(path, images, segmenter)
    for ours, plain in zip(found, segmenter(images), strict=True):
        if config.mask_branch == "none":
            assert len(ours) == len(plain) > 0 and not ours.has_masks
            torch.testing.assert_close(ours.boxes, plain.boxes, rtol=1e-5, atol=1e-3)
        else:
            assert_same(ours, plain)


def test_a_shortlist_is_enough_or_says_so(small_segmenter, images):
    small_segmenter.settings = replace(small_segmenter.settings, top_k=2)
    two = [images[0], images[2]]
    batch = Batch.of(two, small_segmenter.settings)
    plain = small_segmenter(two)
    enough = path_for(small_segmenter, batch, candidates=60)
    for ours, theirs in zip(run(enough, two, small_segmenter), plain, strict=True):
        assert_same(ours, theirs)
    few = path_for(small_segmenter, batch, candidates=1)
    few.prepare(two, batch.numbers())
    few.run()
    assert not few.results.is_complete()
    # All that could be seen was seen: no other anchor passes the threshold.
    strict = replace(small_segmenter.settings, score_threshold=float(plain[0].scores.max()) + 1e-4)
    one = path_for(small_segmenter, Batch.of(two[:1], strict), candidates=3)
    one.prepare(two[:1], Batch.of(two[:1], strict).numbers())
    one.run()
    assert one.results.is_complete() and not one.results.table[..., 7].any()


def test_too_little_room_is_told(small_segmenter, images):
    batch = Batch.of(images[:1], small_segmenter.settings)
    path = path_for(small_segmenter, batch, area=0.01)
    path.prepare(images[:1], batch.numbers())
    path.run()
    missing = path.results.missing_bytes()
    enough = path_for(small_segmenter, batch)
    run(enough, images[:1], small_segmenter)
    assert enough.results.head(len(path.results.bits)).missing_bytes() == missing
    room = len(path.results.bits)
    wide = enough.results.instances(batch.image_sizes, small_segmenter.class_names)[0]
    assert missing == len(wide.stored_masks.bits) - room > 0


def test_packed_masks_can_be_chosen_and_cannot_be_resized(small_segmenter, images):
    path = path_for(small_segmenter, Batch.of(images[:1], small_segmenter.settings))
    found = run(path, images[:1], small_segmenter)[0]
    assert torch.equal(found[[3, 1]].masks, found.masks[[3, 1]])
    assert torch.equal(found[found.class_ids == found.class_ids[0]].masks[0], found.masks[0])
    assert torch.equal(found.to("cpu").label_image(), found.label_image())
    with pytest.raises(ValueError, match=r"\(60, 90\).*\(30, 45\)"):
        found.stored_masks.regions(30, 45)


def test_standard_nms_has_no_fixed_shapes(small_segmenter):
    settings = replace(small_segmenter.settings, nms_method="standard")
    batch = Batch(((60, 90),), settings)
    assert not batch.plan.has_fixed_shapes
    with pytest.raises(ValueError, match="standard"):
        path_for(small_segmenter, batch)


class AtOnce:
    """A stream, an event and a graph of a device that does everything at once."""

    def __init__(self, *_: object, **__: object) -> None:
        self.replay: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Callable[..., float]:
        return lambda *_: 1.0


@pytest.fixture
def device_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU in the place of a GPU: what is copied where, if not when."""
    for name in ("Stream", "Event", "CUDAGraph", "current_stream", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, AtOnce)
    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    allocate = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **o: allocate(*a, **o))


def test_two_batches_on_their_way(small_segmenter, images, device_at_once, monkeypatch):
    """Of any sizes, some larger than there was room for; each ends in memory of its own."""
    monkeypatch.setattr(graphs, "ROOMY_SIZE", (60, 90))
    large = images[0].repeat(2, 3, 1)
    batches = [images[:2], [images[1], large], [large, large.flip(1)], images[1::-1]]
    plan = Plan.of(2, small_segmenter.settings)
    made = GraphedPath(small_segmenter.runtime, plan, Lane(torch.device("cpu")), 1 << 20)
    made._graph.replay = made._path.run
    pending = []
    for batch in batches:
        given = [image.clone() for image in batch]
        pending.append(made.submit(given, Batch.of(given, small_segmenter.settings)))
        for image in given:
            image.zero_()  # it may be another one by now
    assert [each._outcome is None for each in pending] == [False, False, True, True]
    for batch, each in zip(batches, pending, strict=True):
        outcome = each.wait()
        assert isinstance(outcome, list)
        for found, expected in zip(outcome, small_segmenter(batch), strict=True):
            assert_same(found, expected)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_graphs_on_cuda(photos, precision):
    segmenter = Segmenter(device="cuda", precision=precision, score_threshold=0.05, top_k=20)
    plain = [segmenter([photo])[0] for photo in photos[:1]]
    assert not isinstance(plain[0].stored_masks, PackedMasks)  # the first one had no graph
    segmenter.settings = replace(segmenter.settings, nms_method="standard")  # which never has
    plain = [segmenter([photo])[0] for photo in photos]
    segmenter.settings = replace(segmenter.settings, nms_method="fast")
    for made in (torch.Tensor.cpu, torch.Tensor.cuda):  # on the host, and on the GPU already
        for photo, expected in zip(photos, plain, strict=True):
            found = segmenter([made(photo)])[0]
            assert isinstance(found.stored_masks, PackedMasks)
            best, same = int(expected.scores.argmax()), int(found.scores.argmax())
            torch.testing.assert_close(found.boxes[same], expected.boxes[best], rtol=0.02, atol=2)
            ours, theirs = found.masks[same], expected.masks[best]
            assert (ours & theirs).sum() > 0.95 * (ours | theirs).sum() > 0
    # Two batches on their way at once, in the order in which they were given; of any sizes.
    segmenter.warm_up(batch_sizes=(2,))
    batches = [[photos[0], photos[1]], [photos[1], 255 - photos[0]], [photos[0], photos[1]]]
    submitted = [segmenter.submit(batch) for batch in batches]
    (first, times), (second, _), (third, _) = (each.result() for each in submitted)
    assert all(each.done() for each in submitted)
    assert times.network > 0 == times.detection
    assert torch.equal(first[0].boxes, third[0].boxes)
    assert not torch.equal(first[0].boxes, second[0].boxes)
    assert second[0].image_size == tuple(photos[1].shape[:2])
