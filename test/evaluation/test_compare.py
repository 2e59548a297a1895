"""The papers' tables: every row can be run, and is what it says."""

import dataclasses
import json
import re
from pathlib import Path

import cv2
import pytest
import torch

from yolact_ros.cli import main
from yolact_ros.data import DataError, DataSource
from yolact_ros.evaluation.coco import evaluate
from yolact_ros.evaluation.compare import Setup, compare, compare_stages
from yolact_ros.evaluation.papers import COMPARISONS
from yolact_ros.network import CONFIGS, EMBEDDED, NetworkConfig, build, config_of, save_weights
from yolact_ros.network.anchors import make_anchors

TINY = EMBEDDED.replace(name="tiny", image_size=96, fpn_channels=16, mask_rescoring=False)
TINY_RESNET = NetworkConfig(
    name="tiny_resnet", backbone="resnet50", image_size=256, fpn_channels=16, num_prototypes=8
)


def quick(image, **changes):
    return Setup(image, "cpu", rounds=1, warm_up=0, **changes)


@pytest.fixture(scope="module")
def image(repository):
    photo = cv2.imread(str(repository / "yolact_ros" / "demo" / "photos" / "crossing.jpg"))
    return cv2.resize(photo, (240, 320))


def saved(config, folder, name="own.safetensors"):
    torch.manual_seed(0)
    save_weights(build(config), folder / name)
    return str(folder / name)


@pytest.mark.parametrize("number", COMPARISONS)
def test_every_row_is_a_network_of_its_own(number):
    comparison = COMPARISONS[number]
    base = config_of(comparison.base)
    configs = [
        (base.replace(**row.changes), row.nms) for row in comparison.rows if row.changes is not None
    ]
    assert len(set(configs)) == len(configs) > 1 or number == "8"
    assert len({row.name for row in comparison.rows}) == len(comparison.rows)


def test_the_additions_lead_from_yolact_to_its_successor():
    base = config_of(COMPARISONS["6"].base)
    first, *_, last = (base.replace(**row.changes) for row in COMPARISONS["6"].rows)
    assert first == base
    assert last.replace(name="yolact_plus_base") == config_of("yolact_plus_base")


def test_anchors_of_other_ratios_have_other_shapes():
    """The anchors of YOLACT's own weights are square, a bug that YOLACT++ does not have."""
    base = config_of(COMPARISONS["3"].base)
    for row in COMPARISONS["3"].rows:
        config = base.replace(**row.changes)
        sizes = make_anchors(config)[:, 2:]
        shapes = {round(float(ratio), 2) for ratio in (sizes[:, 0] / sizes[:, 1]).unique()}
        assert len(shapes) == len(config.anchor_ratios)


def test_a_table_without_weights_has_times_alone(image):
    table = COMPARISONS["6"]
    ends = dataclasses.replace(table, rows=(table.rows[0], table.rows[-1]))
    rows = compare(ends, quick(image, base=TINY_RESNET))
    assert [row.name for row in rows] == ["YOLACT", "+rescoring"]
    for row in rows:
        assert row.weights == "random" and row.ap is None
        assert 0 < row.detection < row.milliseconds <= row.percentile_99
    assert (rows[-1].paper_ap, rows[-1].paper_milliseconds) == (34.6, 36.6)


def test_methods_of_others_have_the_papers_figures_alone(image):
    *_, mask_rcnn = compare(COMPARISONS["2a"], quick(image, base=TINY))
    assert (mask_rcnn.paper_ap, mask_rcnn.paper_milliseconds) == (35.8, 101.0)
    assert mask_rcnn.weights == "" and mask_rcnn.milliseconds is mask_rcnn.ap is None


def test_weights_go_to_the_rows_that_they_fit(image, tmp_path):
    sixteen = saved(TINY.replace(num_prototypes=16), tmp_path)
    eight = saved(TINY.replace(num_prototypes=8), tmp_path, "eight.safetensors")
    setup = quick(image, base=TINY, weights=(sixteen, f"8={eight}"))
    few = dataclasses.replace(COMPARISONS["2b"], rows=COMPARISONS["2b"].rows[:3])
    assert [row.weights for row in compare(few, setup)] == [eight, sixteen, "random"]


def test_weights_for_no_row_are_refused(image, tmp_path):
    path = saved(TINY.replace(num_prototypes=10), tmp_path)
    few = dataclasses.replace(COMPARISONS["2b"], rows=COMPARISONS["2b"].rows[:1])
    with pytest.raises(
        ValueError, match=r"own\.safetensors are for no row of this table; it has 8"
    ):
        compare(few, quick(image, base=TINY, weights=(path,)))
    with pytest.raises(ValueError, match=r"row '8': it has \{'num_prototypes': 10\}"):
        compare(few, quick(image, base=TINY, weights=(f"8={path}",)))


def test_bad_data_and_rounds_are_refused_before_anything_is_timed(image, tmp_path, monkeypatch):
    content = {
        "categories": [{"id": 1, "name": "dog"}],
        "images": [],
        "annotations": [],
    }
    path = tmp_path / "dogs.json"
    path.write_text(json.dumps(content))
    monkeypatch.setattr("yolact_ros.evaluation.compare.measure", None)
    few = dataclasses.replace(COMPARISONS["2b"], rows=COMPARISONS["2b"].rows[:1])
    setup = quick(image, base=TINY, weights=(saved(TINY.replace(num_prototypes=8), tmp_path),))
    with pytest.raises(DataError, match=r"none of the classes person; it has dog"):
        compare(few, setup, DataSource.parse(str(path)))
    with pytest.raises(ValueError, match=r"^rounds=0 is not allowed"):
        dataclasses.replace(setup, rounds=0)


def test_both_ways_of_suppression_are_measured_on_data(some_people, repository, image, monkeypatch):
    methods = []

    def note(segmenter, *arguments, **options):
        methods.append(segmenter.settings.nms_method)
        return evaluate(segmenter, *arguments, **options)

    monkeypatch.setattr("yolact_ros.evaluation.compare.evaluate", note)
    weights = repository / "yolact_ros" / "weights" / "yolact_person_lite.safetensors"
    setup = quick(image, weights=(str(weights),))
    standard, fast, *_ = compare(COMPARISONS["2a"], setup, some_people(4))
    assert standard.weights == fast.weights == str(weights)
    assert methods == ["standard", "fast"]
    assert fast.ap > 20 and fast.ap == pytest.approx(standard.ap, abs=5)


def test_the_stages_are_timed_one_by_one(image):
    setup = quick(image, base=TINY.replace(image_size=256, mask_rescoring=True))
    *stages, whole = compare_stages(COMPARISONS["8"], setup)
    names = [stage.name for stage in stages]
    assert {"preprocessing", "backbone", "FPN", "protonet", "heads", "NMS"} < set(names)
    assert whole.name == "image to masks"
    assert all(stage.milliseconds > 0 for stage in [*stages, whole])


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(CONFIGS, "yolact_person_lite", TINY.replace(name="yolact_person_lite"))
    target = tmp_path / "table.json"
    arguments = [
        "2c",
        "--model",
        "yolact_person_lite",
        "--rounds",
        "1",
        "--device",
        "cpu",
        "--json",
        str(target),
    ]
    absent = str(tmp_path / "instances_val2017.json")
    assert main(["table", *arguments, "--data", absent]) == 0
    assert f"no AP: {absent} is not there" in capsys.readouterr().out
    Path(absent).write_text("{")
    assert main(["table", *arguments, "--data", absent]) == 1
    assert f"{absent} cannot be read" in capsys.readouterr().err
    assert main(["table", *arguments]) == 0
    remark, title, _, header, *lines = capsys.readouterr().out.splitlines()
    assert title == "Table 2c of YOLACT: accelerated baselines"
    assert remark.startswith("no AP: no data was given")
    titles = ["paper AP", "paper ms", "ms", "p99", "detection", "network, weights"]
    assert re.split(r"  +", header.strip()) == titles
    (line,) = (line for line in lines if line.startswith("fc-mask"))
    assert line.split()[1:3] == ["20.7", "38.9"]
    assert line.endswith("  yolact_person_lite, random")
    rows = json.loads(target.read_text())["rows"]
    assert [row["weights"] for row in rows] == ["", "", "random", "random"]
    assert rows[2]["milliseconds"] > 0
    assert main(["table", "8", *arguments[1:], "--data", absent]) == 0
    assert capsys.readouterr().out.startswith("no AP: this table has only times")
