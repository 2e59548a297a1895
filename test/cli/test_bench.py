"""`yolact bench` on the embedded model: a small run, with everything that it writes."""

import json

import cv2
import pytest

from yolact_ros.benchmark.work import measure_ceilings
from yolact_ros.cli import main

PARTS = (
    "preprocessing", "backbone", "FPN", "protonet", "heads", "NMS", "masks", "re-scoring",
    "transfer", "pixels",
)  # fmt: skip


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    words = ["bench", "yolact_person_lite", "--backends", "torch", "--batches", "1", "2"]
    words += ["--rounds", "2", "--no-node", "--size", "160x120", "--output", str(folder)]
    with pytest.MonkeyPatch.context() as patch:  # ceilings of small products: these take seconds
        patch.setattr(
            "yolact_ros.benchmark.run.measure_ceilings",
            lambda device, dtype, size=0, **options: measure_ceilings(
                device, dtype, size or 128, **options
            ),
        )
        assert main(words) == 0
    return folder


def test_json_holds_every_number(output):
    report = json.loads((output / "benchmark.json").read_text())
    assert report["command"].startswith("yolact bench yolact_person_lite")
    assert report["image"] == [120, 160]
    assert report["machine"]["threads"] >= 1
    (ceilings,) = report["machine"]["ceilings"].values()
    assert list(report["machine"]["ceilings"]) == ["float32 on cpu"]
    assert ceilings["flops"] > 1e9 and ceilings["bytes"] > 1e8
    assert report["side_by_side"] == []
    assert report["models"][0]["node"] is None
    (model,) = report["models"]
    assert "embedded weights" in model["description"]
    assert model["best"]["images"] in (1, 2)
    assert model["single"]["flops"] == pytest.approx(11.97e9, rel=0.01)
    assert model["single"]["limit"] > 0
    assert tuple(model["single"]["stages"]) == PARTS
    for timing in (model["single"]["total"], *model["single"]["stages"].values()):
        assert len(timing["milliseconds"]) == 2
        assert 0 < timing["median"] <= timing["percentile_99"]
    assert 0 < model["memory"]["imports"] < model["memory"]["host"]
    assert model["memory"]["device"] == 0


def test_the_table_names_every_stage(output):
    table = (output / "benchmark.md").read_text()
    for name in (*PARTS, "end to end", "frames a second", "times the limit"):
        assert name in table
    assert "node:" not in table and "The node" not in table, "it was not asked for"


def test_the_plot_is_drawn(output):
    plot = cv2.imread(str(output / "benchmark.png"))
    assert plot.shape[0] > 200
    assert plot.std() > 10, "there is something on it"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["yolact_nothing"], "yolact_nothing"),
        (["yolact_person_lite", "--size", "640"], "'640'"),
        (["yolact_person_lite", "--size", "100000x100000"], "each 1 to 8192"),
        (["yolact_person_lite", "--batches", "0"], "batch"),
        (["yolact_person_lite", "--seconds", "0"], "bench: seconds=0.0 is not allowed"),
        (["yolact_resnet50", "--reference", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_refused_with_the_reason(words, reason, capsys):
    assert main(["bench", *words, "--no-memory", "--no-node"]) == 1
    said = capsys.readouterr().err
    assert reason in said and "ceilings" not in said, "it is refused before the work"
