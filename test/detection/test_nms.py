"""The NMS variants against slow definitions of them in plain Python."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from yolact_ros.detection import DetectionSettings, detect
from yolact_ros.detection.boxes import decode, iou
from yolact_ros.detection.detections import top_of_parts
from yolact_ros.detection.masks import make_masks
from yolact_ros.network.yolact import MaskIoUNet

Box = list[float]
Found = list[tuple[float, int, int]]  # score, class, candidate


def plain_iou(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def by_score(items: list[tuple[float, int]]) -> list[tuple[float, int]]:
    return sorted(items, key=lambda item: -item[0])


def fast(boxes: list[Box], scores: list[list[float]], s: DetectionSettings) -> Found:
    """Whatever overlaps a better box of its class goes, whether that box stays or not."""
    found = []
    for c in range(len(scores[0])):
        ranked = by_score([(row[c], i) for i, row in enumerate(scores)])[: s.nms_top_k]
        for rank, (score, i) in enumerate(ranked):
            better = [j for _, j in ranked[:rank]]
            if all(plain_iou(boxes[i], boxes[j]) <= s.nms_iou_threshold for j in better):
                found.append((score, c, i))
    return found


def cross_class(boxes: list[Box], scores: list[list[float]], s: DetectionSettings) -> Found:
    """The same, where each candidate has its best class only and all classes compete."""
    ranked = by_score([(max(row), i) for i, row in enumerate(scores)])[: s.nms_top_k]
    return [
        (score, scores[i].index(score), i)
        for rank, (score, i) in enumerate(ranked)
        if all(plain_iou(boxes[i], boxes[j]) <= s.nms_iou_threshold for _, j in ranked[:rank])
    ]


def standard(boxes: list[Box], scores: list[list[float]], s: DetectionSettings) -> Found:
    """Greedy: only boxes that stay suppress others."""
    threshold = max(s.confidence_threshold, s.score_threshold)
    found = []
    for c in range(len(scores[0])):
        kept: list[int] = []
        for score, i in by_score([(row[c], i) for i, row in enumerate(scores)]):
            if score > threshold and all(
                plain_iou(boxes[i], boxes[j]) <= s.nms_iou_threshold for j in kept
            ):
                kept.append(i)
                found.append((score, c, i))
    return found


PLAIN = {"fast": fast, "cross_class": cross_class, "standard": standard}


def plain_detect(predictions, anchors, s: DetectionSettings, image: int) -> Found:
    """What `detect` should find in one image; candidates are anchors."""
    boxes = decode(predictions.box_offsets[image], anchors).tolist()
    scores = predictions.class_logits[image].softmax(dim=-1)[:, 1:].tolist()
    threshold = max(s.confidence_threshold, s.score_threshold)
    candidates = [i for i, row in enumerate(scores) if max(row) > threshold]
    if not candidates:
        return []
    found = [
        (score, c, candidates[i])
        for score, c, i in PLAIN[s.nms_method](
            [boxes[i] for i in candidates], [scores[i] for i in candidates], s
        )
        if score > s.score_threshold and (not s.class_ids or c in s.class_ids)
    ]
    return sorted(found, key=lambda item: -item[0])[: s.top_k]


def found_by_detect(predictions, anchors, s: DetectionSettings, image: int) -> Found:
    """`detect`'s answer for one image; candidates are recognised by their boxes."""
    d = detect(predictions, anchors, s)
    assert torch.equal(d.valid[image].sort(descending=True).values, d.valid[image])
    valid = d.valid[image]
    boxes = decode(predictions.box_offsets[image], anchors)
    found = []
    for box, score, c, coefficients in zip(
        d.boxes[image][valid],
        d.scores[image][valid],
        d.class_ids[image][valid],
        d.coefficients[image][valid],
        strict=True,
    ):
        i = int((boxes - box).abs().amax(dim=1).nan_to_num(torch.inf).argmin())
        assert torch.equal(predictions.coefficients[image][i], coefficients)
        found.append((float(score), int(c), i))
    return found


def assert_same(ours: Found, plain: Found) -> None:
    assert [found[1:] for found in ours] == [found[1:] for found in plain]
    assert [found[0] for found in ours] == pytest.approx([found[0] for found in plain], abs=1e-6)


@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"score_threshold": 0.2},
        {"confidence_threshold": 0.12},
        {"confidence_threshold": 0.0},
        {"nms_iou_threshold": 0.2},
        {"nms_iou_threshold": 0.0},
        {"nms_iou_threshold": 1.0},
        {"nms_top_k": 5},
        {"nms_top_k": 1},
        {"top_k": 7},
        {"top_k": 1},
        {"class_ids": (1,)},
        {"class_ids": (0, 2), "top_k": 3},
        {"class_ids": (5,)},
    ],
    ids=str,
)
def test_random_boxes(random_scene, method, changes):
    settings = replace(DetectionSettings(nms_method=method), **changes)
    predictions, anchors = random_scene(batch=2, count=60, classes=3, seed=len(str(changes)))
    for image in range(2):
        ours = found_by_detect(predictions, anchors, settings, image)
        assert_same(ours, plain_detect(predictions, anchors, settings, image))


@pytest.mark.parametrize("method", PLAIN)
def test_a_single_class(random_scene, method):
    settings = DetectionSettings(nms_method=method)
    predictions, anchors = random_scene(batch=1, count=50, classes=1)
    ours = found_by_detect(predictions, anchors, settings, 0)
    assert ours
    assert_same(ours, plain_detect(predictions, anchors, settings, 0))


@pytest.mark.parametrize("method", PLAIN)
def test_images_of_a_batch_do_not_touch_each_other(random_scene, make_scene, method):
    """A crowded image, one with a single candidate and one with none."""
    settings = DetectionSettings(nms_method=method)
    predictions, anchors = random_scene(batch=3, count=40, classes=3)
    predictions.class_logits[1, 1:, 0] += 50
    predictions.class_logits[2, :, 0] += 50
    counts = [len(found_by_detect(predictions, anchors, settings, i)) for i in range(3)]
    assert counts[0] > 5 and counts[1] >= 1 and counts[2] == 0
    for image in range(3):
        alone = replace(
            predictions,
            class_logits=predictions.class_logits[image : image + 1],
            box_offsets=predictions.box_offsets[image : image + 1],
            coefficients=predictions.coefficients[image : image + 1],
        )
        assert found_by_detect(alone, anchors, settings, 0) == found_by_detect(
            predictions, anchors, settings, image
        )


@pytest.mark.parametrize("method", PLAIN)
def test_equal_scores_and_equal_boxes(make_scene, method):
    """Of equal boxes with equal scores one stays; apart from each other both do."""
    box, other = [0.1, 0.1, 0.4, 0.4], [0.6, 0.6, 0.9, 0.9]
    boxes = torch.tensor([[box, box, other, box]])
    scores = torch.tensor([[[0.5, 0.1]] * 4])
    d = detect(*make_scene(boxes, scores), DetectionSettings(nms_method=method))
    found = d.boxes[0][d.valid[0] & (d.class_ids[0] == 0)]
    assert len(found) == 2
    torch.testing.assert_close(found.sort(dim=0).values, torch.tensor([box, other]))


@pytest.mark.parametrize("method", PLAIN)
def test_boxes_of_no_size(make_scene, method):
    """Points and lines overlap nothing, not even themselves, and stay."""
    boxes = torch.tensor(
        [[[0.5, 0.5, 0.5 + 1e-30, 0.5 + 1e-30], [0.2, 0.2, 0.2 + 1e-30, 0.8], [0.1, 0.1, 0.9, 0.9]]]
    )
    predictions, anchors = make_scene(boxes, torch.tensor([[[0.5], [0.6], [0.7]]]))
    predictions.box_offsets[0, :2, 2:] = -1e4  # the size of a point
    d = detect(predictions, anchors, DetectionSettings(nms_method=method))
    assert d.valid[0].tolist() == [True, True, True]
    assert d.scores[0].tolist() == pytest.approx([0.7, 0.6, 0.5])


@pytest.mark.parametrize("method", PLAIN)
def test_classes_far_outside_do_not_suppress_each_other(make_scene, method):
    """Only within its class does a box suppress, however far beyond the image it reaches."""
    boxes = torch.tensor([[[-30.0, -30, 1, 1], [-30, -30, 1, 1], [0.1, 0.1, 0.2, 0.2]]])
    scores = torch.tensor([[[0.5, 0.1, 0.01], [0.1, 0.5, 0.01], [0.01, 0.01, 0.5]]])
    settings = DetectionSettings(nms_method=method, score_threshold=0.2)
    d = detect(*make_scene(boxes, scores), settings)
    expected = 2 if method == "cross_class" else 3
    assert int(d.valid.sum()) == expected


@pytest.mark.parametrize("method", PLAIN)
def test_overflows_hide_nothing_else(random_scene, method):
    settings = DetectionSettings(nms_method=method)
    predictions, anchors = random_scene(batch=1, count=30, classes=3)
    expected = found_by_detect(predictions, anchors, settings, 0)
    spoilt, more = random_scene(batch=1, count=6, classes=3, seed=9)
    spoilt.class_logits[0, 0] = float("nan")
    spoilt.class_logits[0, 1, 1] = float("inf")
    spoilt.box_offsets[0, 2] = float("nan")
    spoilt.box_offsets[0, 3, 2] = float("inf")
    spoilt.box_offsets[0, 4, 3] = 1e4  # exp of it is infinite
    spoilt.box_offsets[0, 5, 0] = -float("inf")
    both = replace(
        predictions,
        class_logits=torch.cat((predictions.class_logits, spoilt.class_logits), dim=1),
        box_offsets=torch.cat((predictions.box_offsets, spoilt.box_offsets), dim=1),
        coefficients=torch.cat((predictions.coefficients, spoilt.coefficients), dim=1),
    )
    assert found_by_detect(both, torch.cat((anchors, more)), settings, 0) == expected


def test_boxes_only(random_scene):
    predictions, anchors = random_scene(batch=1, count=30, classes=3)
    plain = replace(predictions, coefficients=None, prototypes=None)
    with_masks = detect(predictions, anchors, DetectionSettings())
    without = detect(plain, anchors, DetectionSettings())
    assert without.coefficients is None
    assert torch.equal(with_masks.boxes, without.boxes)


def test_iou_of_inverted_and_empty_boxes():
    boxes = torch.tensor([[0.0, 0, 1, 1], [0.5, 0.5, 0.5, 0.5], [0.9, 0.1, 0.1, 0.9], [2, 2, 3, 3]])
    overlaps = iou(boxes, boxes)
    assert overlaps.isfinite().all()
    assert overlaps[0].tolist() == [1, 0, 0, 0]
    assert overlaps[1].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"nms_method": "soft"}, "nms_method='soft' is not allowed: one of fast, cross_class"),
        ({"score_threshold": -0.1}, "score_threshold=-0.1"),
        ({"score_threshold": float("nan")}, "score_threshold=nan"),
        ({"confidence_threshold": 1.5}, "confidence_threshold=1.5"),
        ({"nms_iou_threshold": 2}, "nms_iou_threshold=2"),
        ({"nms_top_k": 0}, "nms_top_k=0"),
        ({"nms_top_k": 1e6}, "nms_top_k=1000000.0"),
        ({"top_k": 2.5}, "top_k=2.5"),
        ({"top_k": -1}, "top_k=-1"),
        ({"class_ids": (0, -1)}, "class_ids"),
        ({"class_ids": [0.0]}, r"class_ids=\(0.0,\) is not allowed: they must be whole numbers"),
        ({"class_ids": "person"}, "class_ids"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DetectionSettings(**changes)


def test_classes_may_be_given_as_a_list():
    settings = DetectionSettings(class_ids=[2, 0])
    assert settings == DetectionSettings(class_ids=(2, 0)) and settings in {settings}


@pytest.mark.parametrize("method", ["fast", "cross_class"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"score_threshold": 0.2}, {"class_ids": (0, 2)}, {"top_k": 3}, {"nms_top_k": 5}],
    ids=str,
)
@pytest.mark.parametrize("count", [40, 39])
def test_fixed_shapes_give_the_same(random_scene, method, changes, count):
    settings = DetectionSettings(nms_method=method, **changes)
    predictions, anchors = random_scene(batch=3, count=40, classes=3)
    predictions.class_logits[1, 1:, 0] += 50
    predictions.class_logits[2, :, 0] += 50
    fixed = detect(predictions, anchors, settings, candidates=count)
    fitted = detect(predictions, anchors, settings)
    assert fitted.valid[0].any() and not fitted.valid[2].any()
    assert torch.equal(fixed.valid.sum(dim=1), fitted.valid.sum(dim=1))
    for name in ("boxes", "scores", "class_ids", "coefficients"):
        assert torch.equal(
            getattr(fixed, name)[fixed.valid], getattr(fitted, name)[fitted.valid]
        ), name


@pytest.mark.parametrize("method", ["fast", "cross_class"])
def test_fixed_shapes_depend_on_no_value(random_scene, method):
    """Tensors without values go through: a graph can be captured."""
    settings = DetectionSettings(nms_method=method, class_ids=(1,), score_threshold=0.3)
    with FakeTensorMode():
        predictions, anchors = random_scene(batch=2, count=3000, classes=3)
        prototypes = torch.rand(2, predictions.coefficients.shape[-1], 138, 138)
        d = detect(predictions, anchors, settings, candidates=2000)
        grids = make_masks(d, prototypes, MaskIoUNet(3))
    assert d.valid.shape == (2, 100)
    assert grids.values.shape == (2, 100, 138, 138)
    assert grids.scores.shape == (2, 100)


def test_standard_nms_has_no_fixed_shapes(random_scene):
    scene = random_scene(batch=1, count=5, classes=2)
    settings = DetectionSettings(nms_method="standard")
    with pytest.raises(ValueError, match=r"standard.*use fast or cross_class"):
        detect(*scene, settings, candidates=5)


@pytest.mark.parametrize("length", [160, 171, 1600])
def test_top_scores_of_parts(length):
    """As a GPU finds them; of equal scores any will do."""
    torch.manual_seed(length)
    for scores in (torch.rand(3, length), torch.randint(0, 4, (3, length)) / 4 - 1):
        best, index = top_of_parts(scores, 9)
        assert torch.equal(best, scores.topk(9).values)
        assert torch.equal(scores.gather(1, index), best)  # none of the padding
        assert all(len(row.unique()) == 9 for row in index)
