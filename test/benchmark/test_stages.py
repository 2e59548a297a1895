"""The stages are the segmenter's own, on what the stages before them made."""

import contextlib
import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from yolact_ros.benchmark import stages
from yolact_ros.benchmark.stages import STAGES, as_graph, fixed_stages_of, stages_of
from yolact_ros.detection.regions import packed_sizes
from yolact_ros.engine import Segmenter
from yolact_ros.engine.fixed import Batch, FixedPath
from yolact_ros.engine.graphs import MASK_AREA


@pytest.fixture(scope="module")
def segmenter(small_weights):
    return Segmenter(weights=small_weights, backend="torch", score_threshold=0)


@torch.no_grad()
def test_stages_give_what_the_segmenter_gives(segmenter, image):
    calls = stages_of(segmenter, [image, image])
    assert list(calls) == [name for name in STAGES if name not in ("network", "packing")]
    batch = calls["preprocessing"]()
    predictions = segmenter.runtime(batch)
    logits, offsets, coefficients = calls["heads"]()
    torch.testing.assert_close(logits, predictions.class_logits)
    torch.testing.assert_close(offsets, predictions.box_offsets)
    torch.testing.assert_close(coefficients, predictions.coefficients)
    torch.testing.assert_close(calls["protonet"](), predictions.prototypes)
    found = segmenter([image, image])
    for i in range(2):
        torch.testing.assert_close(calls["NMS"]().scores[i], found[i].scores)
        torch.testing.assert_close(calls["re-scoring"]()[i], found[i].mask_scores)
        assert torch.equal(calls["transfer"]()[i].masks, found[i].masks)
        assert torch.equal(calls["pixels"]()[i].pixels, found[i].regions().pixels)


@torch.no_grad()
@pytest.mark.parametrize("in_parts", [True, False])
def test_stages_in_fixed_shapes_give_what_the_segmenter_gives(segmenter, image, in_parts):
    """As they are on a GPU, where each is a graph."""
    images = [image, np.ascontiguousarray(image[:, :100])]
    sizes = tuple(each.shape[:2] for each in images)
    calls = fixed_stages_of(segmenter, images, in_parts)
    others = {"network"} if in_parts else {"backbone", "FPN", "protonet", "heads"}
    assert list(calls) == [name for name in STAGES if name not in others]
    calls["packing"]()
    results = calls["transfer"]()
    found = segmenter(images)
    # No more is packed and copied than for a frame.
    packed = int(packed_sizes(results.table[..., 8:12]).sum())
    usual = Batch(sizes, segmenter.settings).mask_bytes(MASK_AREA)
    assert packed <= len(results.bits) <= max(usual, 2 * packed)
    for i, each in enumerate(results.instances(sizes, ("a",))):
        torch.testing.assert_close(each.scores, found[i].scores)
        rescored = calls["re-scoring"]()[i, : len(each)]
        torch.testing.assert_close(rescored, found[i].mask_scores)
        assert torch.equal(calls["pixels"]()[i].pixels, each.regions().pixels)
        assert len(each) > 0
        assert (each.masks != found[i].masks).float().mean() < 1e-3


@torch.no_grad()
def test_fixed_shapes_are_told_apart_from_what_does_not_fit(segmenter, image, monkeypatch):
    monkeypatch.setattr(stages, "FixedPath", partial(FixedPath, candidates=5))
    calls = fixed_stages_of(segmenter, [image], in_parts=False)
    calls["packing"]()
    assert not calls["transfer"]().is_complete()


def test_a_stage_can_be_repeated(segmenter, image):
    with torch.no_grad():
        calls = stages_of(segmenter, [image])
        first = [each.clone() for each in calls["backbone"]()]
        for call in calls.values():
            call()
        for a, b in zip(first, calls["backbone"](), strict=True):
            assert torch.equal(a, b)
        torch.testing.assert_close(calls["FPN"](), calls["FPN"]())


def test_a_graph_keeps_what_it_reads(monkeypatch):
    """On CUDA; here with stand-ins for what captures."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, made in (
        ("Stream", lambda device: stream),
        ("current_stream", lambda device: stream),
        ("stream", lambda stream: contextlib.nullcontext()),
        ("CUDAGraph", lambda: SimpleNamespace(replay=lambda: None)),
        ("graph", lambda graph, stream: contextlib.nullcontext()),
    ):
        monkeypatch.setattr(torch.cuda, name, made)
    given = torch.ones(2)
    kept = weakref.ref(given)
    replay = as_graph(partial(torch.add, given, 1), torch.device("cuda"), copies=3)
    del given
    assert kept() is not None and replay().tolist() == [2, 2]
