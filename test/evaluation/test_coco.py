"""Average precision is what pycocotools computes."""

import json
import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolact_ros.cli import main
from yolact_ros.data import (
    DataError,
    DataSource,
    read_countable,
    read_json,
)
from yolact_ros.evaluation.coco import ground_truth, score
from yolact_ros.evaluation.confusion import match
from yolact_ros.evaluation.mistakes import Mistakes, draw_worst
from yolact_ros.network import EMBEDDED, build, save_weights
from yolact_ros.network.classes import COCO_CLASSES

# pycocotools' own, for each mask.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def source(shared):
    path = shared / "data" / "coco-mini" / "val.json"
    if not path.exists():
        pytest.skip(f"needs {path}")
    return DataSource.parse(str(path))


def encoded(mask):
    """A compressed RLE, as JSON takes it."""
    rle = coco_mask.encode(np.asfortranarray(mask))
    counts = rle["counts"]
    text = counts.decode() if isinstance(counts, bytes) else counts
    return {"size": list(mask.shape), "counts": text}


def objects(generator, image_id, size):
    """Ellipses of all sizes as polygons and as both kinds of RLE; now and then a crowd."""
    height, width = size
    for number in range(generator.integers(4, 9)):
        crowd = bool(number == 0 and image_id % 4 == 0)
        axes = (60, 50) if crowd else generator.integers(6, (20, 45, 90)[number % 3], 2)
        centre = generator.integers((0, 0), (width, height))
        ellipse = (centre.tolist(), tuple(int(2 * each) for each in axes), 0)
        corners = np.clip(cv2.boxPoints(ellipse), 0, (width - 1, height - 1))
        mask = np.zeros(size, np.uint8)
        cv2.ellipse(mask, centre.tolist(), tuple(int(each) for each in axes), 0, 0, 360, 1, -1)
        (low_x, low_y), (high_x, high_y) = corners.min(axis=0), corners.max(axis=0)
        if crowd or number % 3 == 1:
            runs = np.flatnonzero(np.diff(mask.ravel("F"), prepend=0, append=2)).tolist()
            segmentation = {"size": list(size), "counts": np.diff([0, *runs]).tolist()}
        elif number % 3 == 2:
            segmentation = encoded(mask)
        else:
            outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            segmentation = [max(outlines, key=len).ravel().tolist()]
        yield {
            "image_id": image_id,
            "category_id": 84 if number % 4 == 3 else 1,
            "bbox": [float(each) for each in (low_x, low_y, high_x - low_x, high_y - low_y)],
            "area": int(mask.sum()),
            "iscrowd": int(crowd),
            "segmentation": segmentation,
        }


@pytest.fixture(scope="module", params=["made", "coco-mini"])
def annotated(request, tmp_path_factory):
    """Annotations of many objects: made ones, without images, or those of real photographs."""
    if request.param == "coco-mini":
        return request.getfixturevalue("source")
    generator, size = np.random.default_rng(0), (240, 320)
    content = {
        "categories": [{"id": 1, "name": "person"}, {"id": 84, "name": "book"}],
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": size[0], "width": size[1]}
            for i in range(1, 61)
        ],
    }
    found = [each for i in range(1, 61) for each in objects(generator, i, size)]
    content["annotations"] = [each | {"id": i} for i, each in enumerate(found, start=1)]
    path = tmp_path_factory.mktemp("made") / "made.json"
    path.write_text(json.dumps(content))
    return DataSource(path)


def detections(source, kind):
    """The truth, moved by a few pixels, some of it twice, some of it as another class."""
    generator = np.random.default_rng(0)
    content = read_json(source.annotations)
    ids = [c["id"] for c in content["categories"]]
    truth = COCO(str(source.annotations))
    results = []
    for annotation in content["annotations"]:
        for _ in range(generator.integers(0, 3)):
            shift = generator.integers(-6, 7, 2)
            common = {
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"]
                if generator.random() < 0.8
                else int(generator.choice(ids)),
                "score": float(generator.random()),
            }
            if kind == "bbox":
                x, y, w, h = annotation["bbox"]
                results.append(common | {"bbox": [x + shift[0], y + shift[1], w, h]})
                continue
            mask = np.roll(truth.annToMask(annotation), shift, (0, 1))
            results.append(common | {"segmentation": encoded(mask)})
    return results


def scored(source, results, kind, categories):
    return score(ground_truth(read_json(source.annotations)), results, kind, categories)


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize("classes", [["person"], COCO_CLASSES], ids=["people", "all"])
def test_average_precision_is_that_of_pycocotools(annotated, tmp_path, kind, classes):
    """With small, medium and large objects, and crowds with detections in them."""
    source = annotated
    results = detections(source, kind)
    categories = source.read().category_ids(classes)
    ours = scored(source, results, kind, categories)

    path = tmp_path / "results.json"
    path.write_text(json.dumps(results, default=float))
    truth = COCO(str(source.annotations))
    theirs = COCOeval(truth, truth.loadRes(str(path)), kind)
    theirs.params.catIds = sorted(categories.values())
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    everything = ours.overall
    found = [getattr(everything, n) for n in ("ap", "ap50", "ap75", "small", "medium", "large")]
    assert found == pytest.approx(list(theirs.stats[:6]), abs=1e-6)
    at_70 = theirs.eval["precision"][4, :, :, 0, -1]
    assert everything.ap70 == pytest.approx(at_70[at_70 > -1].mean(), abs=1e-6)
    assert 0.1 < everything.ap < everything.ap50 < 1 and min(found) > 0
    for name, category in categories.items():
        # [thresholds, recalls, classes, areas, numbers of detections]; -1: nothing to find
        precision = theirs.eval["precision"][:, :, theirs.params.catIds.index(category), :, -1]
        for area, field in enumerate(("ap", "small", "medium", "large")):
            values = precision[..., area][precision[..., area] > -1]
            wanted = values.mean() if values.size else math.nan
            value = getattr(ours.of_class[name], field)
            assert value == pytest.approx(wanted, abs=1e-6, nan_ok=True), (name, field)
    # The crowds count: detections in them are not wrong.
    crowds = truth.getAnnIds(catIds=list(categories.values()), iscrowd=True)
    matched = {
        id_ for image in theirs.evalImgs if image for id_ in image["dtMatches"].ravel().tolist()
    }
    assert matched & set(crowds)


@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_files_without_areas(annotated, tmp_path, kind):
    source = annotated
    results = detections(source, kind)
    categories = source.read().category_ids(["person", "book"])
    expected = scored(source, results, kind, categories).overall
    content = read_json(source.annotations)
    for annotation in content["annotations"]:
        del annotation["area"]
        if not annotation["iscrowd"]:
            del annotation["iscrowd"]
    path = tmp_path / "val.json"
    path.write_text(json.dumps(content))
    found = scored(DataSource(path), results, kind, categories).overall
    assert (found.ap, found.ap50, found.ap75) == (expected.ap, expected.ap50, expected.ap75)
    sizes = [getattr(found, name) for name in ("small", "medium", "large")]
    assert sizes == pytest.approx([expected.small, expected.medium, expected.large], abs=0.05)


def some_objects(folder, **changes):
    """Two objects in one image, found exactly: a data set, and the results."""
    squares = [[10, 10, 20, 20], [50, 50, 30, 30]]
    content = {
        "categories": [{"id": 0, "name": "person"}],
        "images": [{"id": 3, "file_name": "a.png", "height": 100, "width": 100}],
        "annotations": [
            {
                "id": i,
                "image_id": 3,
                "category_id": 0,
                "bbox": [x, y, w, h],
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
            for i, (x, y, w, h) in enumerate(squares)
        ],
    }
    content["annotations"][1] |= changes
    for image in content["images"]:
        cv2.imwrite(str(folder / image["file_name"]), np.zeros((100, 100, 3), np.uint8))
    path = folder / "some.json"
    path.write_text(json.dumps(content))
    results = [{"image_id": 3, "category_id": 0, "bbox": box, "score": 0.9} for box in squares]
    return DataSource(path, folder), results


def test_ids_may_begin_at_0(tmp_path):
    """As those of some converters do; to COCO's code, annotation 0 is one that nothing matched."""
    source, results = some_objects(tmp_path)
    assert scored(source, results, "bbox", {"person": 0}).overall.ap == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_id": 77}, "annotation 1: image_id 77 is not a valid image of this file"),
        ({"segmentation": []}, "annotation 1: it has no mask"),
        ({"segmentation": [10, 10, 40, 10, 40, 40]}, "has 10: a polygon is three or more"),
        ({"segmentation": [[10, 10]]}, "a polygon is three or more"),
        ({"segmentation": [[10, 10, 20, 20]]}, "a polygon is three or more"),
        ({"segmentation": [["a", 1, 2, 3, 4, 5]]}, "'a', which is not a finite number"),
        ({"area": "900"}, "area '900' is not a number"),
        ({"segmentation": {"size": [9, 9], "counts": "1"}}, r"has the size \[9, 9\]"),
    ],
    ids=str,
)
def test_annotations_that_cannot_be_counted_are_named(tmp_path, changes, reason):
    source, _ = some_objects(tmp_path, **changes)
    with pytest.raises(DataError, match=reason):
        read_countable(source, masks=True)


def test_images_that_are_missing_are_named_before_any_is_segmented(tmp_path):
    source, _ = some_objects(tmp_path)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"none of its 1 images, such as .*\.png, is in"):
        read_countable(source, masks=False)


def test_what_is_of_no_use_for_training_can_be_counted(tmp_path):
    """COCO's own files have boxes without area, and boxes suffice for a network without masks."""
    source, results = some_objects(tmp_path, bbox=[50, 50, 0, 30])
    read_countable(source, masks=True)
    source, results = some_objects(
        tmp_path, segmentation={"size": [100, 100], "counts": [100 * 100]}
    )
    read_countable(source, masks=True)
    (square,) = coco_mask.frPyObjects([[10, 10, 30, 10, 30, 30, 10, 30]], 100, 100)
    found = [{**results[0], "segmentation": square}]
    masks = scored(source, found, "segm", {"person": 0}).overall
    assert masks.ap == pytest.approx(51 / 101)  # one of two is found
    polygons = [[50, 50, 80, 50, 80, 80, 50, 80], [1, 1, 9, 9]]  # one of two points: no pixel
    source, results = some_objects(tmp_path, segmentation=polygons)
    read_countable(source, masks=True)
    (square,) = coco_mask.frPyObjects(polygons[:1], 100, 100)
    found = [{**results[1], "segmentation": square}]
    assert scored(source, found, "segm", {"person": 0}).overall.ap == pytest.approx(51 / 101)


@pytest.mark.parametrize("mask", [[], [[]], {"size": [100, 100], "counts": "?"}], ids=str)
def test_without_masks_objects_are_as_large_as_their_boxes(tmp_path, mask):
    source, results = some_objects(tmp_path, segmentation=mask)
    read_countable(source, masks=False)
    truth = ground_truth(read_json(source.annotations), masks=False)
    scores = score(truth, results, "bbox", {"person": 0}).overall
    assert scores.ap == pytest.approx(1)
    assert [annotation["area"] for annotation in truth.dataset["annotations"]] == [400, 900]


def test_nothing_found_scores_nothing(annotated):
    scores = scored(annotated, [], "segm", annotated.read().category_ids(["person"]))
    assert scores.overall.ap == scores.of_class["person"].ap50 == 0


def test_images_without_mistakes_are_not_drawn(tmp_path):
    source, results = some_objects(tmp_path)
    person = SimpleNamespace(class_names=("person",))  # it is not asked
    images = [match(record, results) for record in source.read().records(["person"])]
    draw_worst(person, Mistakes(images, {0: 0}, score=0.3), tmp_path / "worst", count=5)
    assert not (tmp_path / "worst").exists()


def test_the_command_writes_all_files(source, tmp_path, capsys):
    torch.manual_seed(0)
    weights = tmp_path / "small.safetensors"
    save_weights(build(EMBEDDED, image_size=96, fpn_channels=16, mask_rescoring=False), weights)
    content = read_json(source.annotations)
    content["images"] = [i for i in content["images"] if i["id"] in _with_people(source)][:3]
    kept = {i["id"] for i in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    few = tmp_path / "few.json"
    few.write_text(json.dumps(content))
    output = tmp_path / "out"
    arguments = [
        f"{few}:{source.read().folder}",
        "--weights",
        str(weights),
        "--output",
        str(output),
    ]
    arguments += ["--backend", "torch", "--classes", "--worst", "2", "--score", "0.6"]
    for wrong, reason in ((["--score", "30"], "score=30.0"), (["--worst", "-1"], "worst=-1")):
        assert main(["eval", *arguments, *wrong]) == 1
        assert f"{reason} is not allowed" in capsys.readouterr().err
    assert main(["eval", str(few), "--output", str(tmp_path)]) == 1
    assert "few.json itself, which could be overwritten" in capsys.readouterr().err
    stale = output / "worst" / "01-missed3-wrong0-old.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    assert main(["eval", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "  person" in printed and "ms, median: preprocess" in printed
    summary = json.loads((output / "summary.json").read_text())
    assert summary["images"] == 3 and set(summary["masks by class"]) == {"person"}
    results = json.loads((output / "masks.json").read_text())
    assert set(results[0]) == {"image_id", "category_id", "segmentation", "score"}
    theirs = COCO(str(few)).loadRes(str(output / "masks.json"))
    assert set(theirs.getImgIds()) == kept
    assert len(list((output / "worst").iterdir())) == 2 and not stale.exists()
    for name in ("precision_recall.png", "confusion.png"):
        assert cv2.imread(str(output / name)) is not None


def test_images_whose_annotations_are_secret(tmp_path, capsys):
    """As those of COCO's test-dev: the server measures what is found."""
    people, _ = some_objects(tmp_path)
    content = json.loads(people.annotations.read_text())
    del content["annotations"]
    people.annotations.write_text(json.dumps(content))
    output = tmp_path / "out"
    arguments = [f"{people.annotations}:{people.images}", "--output", str(output)]
    assert main(["eval", "--backend", "torch", *arguments]) == 0
    assert "no accuracy: the file has no annotations" in capsys.readouterr().out
    assert isinstance(json.loads((output / "masks.json").read_text()), list)


@pytest.mark.parametrize("wrong", [{"size": [9, 9], "counts": "abc"}, [[1, 2, 3]], [["a"] * 6]])
def test_masks_do_not_matter_to_a_model_of_boxes(tmp_path, capsys, wrong):
    people, _ = some_objects(tmp_path)
    content = json.loads(people.annotations.read_text())
    content["annotations"][0]["segmentation"] = wrong
    people.annotations.write_text(json.dumps(content))
    torch.manual_seed(0)
    weights = tmp_path / "boxes.safetensors"
    save_weights(build(EMBEDDED.replace(mask_branch="none", mask_rescoring=False)), weights)
    arguments = [f"{people.annotations}:{people.images}", "--weights", str(weights)]
    arguments += ["--backend", "torch", "--output", str(tmp_path / "out"), "--score", "0.9"]
    assert main(["eval", *arguments]) == 0
    assert list((tmp_path / "out" / "worst").iterdir())


def test_what_was_found_is_written_before_it_is_counted(tmp_path, monkeypatch):
    people, _ = some_objects(tmp_path)

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("yolact_ros.cli.eval.accuracy_of", fail)
    arguments = [f"{people.annotations}:{people.images}", "--output", str(tmp_path / "out")]
    with pytest.raises(MemoryError):
        main(["eval", "--backend", "torch", *arguments])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"masks.json", "boxes.json"}


def test_what_is_not_measured_is_told(tmp_path, capsys):
    people, _ = some_objects(tmp_path, category_id=1, iscrowd=1)
    content = json.loads(people.annotations.read_text())
    content["categories"].append({"id": 1, "name": "Person"})
    people.annotations.write_text(json.dumps(content))
    assert main(["eval", "--backend", "torch", f"{people.annotations}:{people.images}"]) == 0
    printed = capsys.readouterr().out
    assert "\nnot measured are Person 1: the model has no such class\n" in printed
    assert "\n1 of 2 annotations are crowd regions" in printed


def test_all_files_are_checked_before_the_first_is_evaluated(source, tmp_path, capsys):
    people, _ = some_objects(tmp_path)
    first = f"{people.annotations}:{people.images}"
    assert main(["eval", "--backend", "torch", first, str(tmp_path / "nothere.json")]) == 1
    assert "nothere.json cannot be read" in capsys.readouterr().err
    content = json.loads(people.annotations.read_text())
    content["categories"][0]["name"] = "dog"
    (tmp_path / "dogs.json").write_text(json.dumps(content))
    assert main(["eval", "--backend", "torch", first, f"{tmp_path}/dogs.json:{people.images}"]) == 1
    printed = capsys.readouterr()
    assert "dogs.json has none of the classes person; it has dog" in printed.err
    assert "images, in percent" not in printed.out


def _with_people(source):
    return {r.id for r in source.read().records(["person"]) if r.annotations}
