"""The tool that measures GPUs, as far as it runs without one."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import gpu_check
import gpu_kernels
import gpu_report
import gpu_steps
import numpy as np
import pytest
import torch

from yolact_ros.detection.regions import pack_plain
from yolact_ros.engine import Segmenter
from yolact_ros.engine.device import choose_device


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_says_that_it_needs_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert gpu_check.main(["--output", str(tmp_path)]) == gpu_check.NO_DEVICE
    assert "no CUDA device" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_gpu_has_a_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device(gpu_check.parse([]).device).index == 0


def test_a_device_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert gpu_check.main(["--device", "cuda:99", "--output", str(tmp_path)]) == gpu_check.NO_DEVICE
    assert "device='cuda:99' is not allowed" in capsys.readouterr().out


def test_everything_but_what_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CXX", "no-such-compiler")
    parts = [part for part in gpu_check.PARTS if part != "tiles"]
    arguments = ["--device", "cpu", "--quick", "--output", str(tmp_path), "--parts", *parts]
    arguments += ["--reference", str(tmp_path / "nowhere")]
    assert gpu_check.main(arguments) == gpu_check.INCOMPLETE
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    failed = {name: text for name, text in report["steps"].items() if text != "measured"}
    name = "yolact_plus_resnet50"
    beside = [f"models, {name}, {what}" for what in ("side by side", "agreement")]
    assert failed.keys() == set(beside)
    assert all("FileNotFoundError: " in failed[each] for each in beside)
    (model,) = report["models"].values()
    stages = {"preprocessing", "network", "NMS", "masks", "packing", "re-scoring"}
    stages |= {"transfer", "pixels"}
    assert model["stages"].keys() == stages and min(model["stages"].values()) > 0
    assert model["one image"]["instances"] > 0 and model["work"]["limit"] > 0
    assert model["images a second"]["batch 2"] > 0
    assert report["cameras"]["yolact_plus_resnet50"]["images_per_second"] > 0
    assert report["JPEG"]["close"] > 0.99 and report["JPEG"]["mean_difference"] < 1
    assert report["kernels"].keys() == gpu_kernels.builders(torch.device("cpu"), small=True).keys()
    assert len(report["precision"]) == 2
    for precision in report["precision"].values():
        assert precision["harmless"] and precision["instances"] > 0
    text = (tmp_path / "gpu_check.md").read_text()
    printed = capsys.readouterr()
    assert text.strip() == printed.out.strip()
    assert "Without a compiler: compiled networks are not measured" in printed.err
    assert "| yolact_plus_resnet50: under 2 ms an image |" in text
    assert "| models, yolact_plus_resnet50, side by side | FileNotFoundError: " in text


def test_accuracy_in_both_precisions(tmp_path: Path, repository: Path):
    pytest.importorskip("faster_coco_eval")
    from yolact_ros.evaluation.findings import to_results

    photo = repository / "yolact_ros" / "demo" / "photos" / "riders.jpg"
    image = cv2.imread(str(photo))
    height, width = image.shape[:2]
    wanted = Segmenter(device="cpu", backend="torch", precision="float32")(image)
    assert len(wanted) > 1
    masks, boxes = to_results(1, wanted, {"person": 1})
    data = tmp_path / "val.json"
    content = {
        "categories": [{"id": 1, "name": "person"}],
        "images": [{"id": 1, "file_name": str(photo), "height": height, "width": width}],
        "annotations": [
            mask | box | {"id": i, "iscrowd": 0, "area": box["bbox"][2] * box["bbox"][3]}
            for i, (mask, box) in enumerate(zip(masks, boxes, strict=True), start=1)
        ],
    }
    data.write_text(json.dumps(content))
    arguments = ["--device", "cpu", "--quick", "--data", str(data)]
    options = gpu_check.parse(arguments)
    setup = gpu_check.make_setup(options, torch.device("cpu"), tmp_path)
    steps = {step.name: step for step in gpu_check.steps_of(setup, options)}
    found = steps["accuracy"].run()
    assert found["float32"] == pytest.approx(100)
    assert found["half"] > 80 and found["objects"] == len(wanted)


def test_no_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--device", "cpu", "--quick", "--seconds", "0", "--output", str(tmp_path)]
    assert gpu_check.main(arguments) == gpu_check.INCOMPLETE
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert len(report["steps"]) > 15
    assert set(report["steps"].values()) == {"skipped: the 0 s were spent"}
    assert (
        "| tiles, small, batch 1, 16x16x16 | skipped: the 0 s were spent |"
        in capsys.readouterr().out
    )


def test_what_the_aims_need_comes_first(tmp_path: Path):
    options = gpu_check.parse(["--reference", "checkout"])
    setup = gpu_check.make_setup(options, torch.device("cuda:0"), tmp_path)
    names = [step.name for step in gpu_check.steps_of(setup, options)]
    assert len(names) == len(set(names))
    first = ["one image", "side by side", "agreement"]
    assert names[:4] == ["machine", *(f"models, {gpu_check.PLUS}, {each}" for each in first)]
    assert all(name.rpartition(", ")[2] in first for name in names[1:13])
    assert names[13] == f"cameras, {gpu_check.PLUS}"
    kernels, half = (
        next(i for i, n in enumerate(names) if n.startswith(f"{part}, "))
        for part in ("kernels", "precision")
    )
    for what in ("deformable", "memory", "second warm-up"):
        assert names.index(f"models, {gpu_check.PLUS}, {what}") < kernels < half
    assert names.index(f"models, {gpu_check.FAST}, images a second, batch 64") < kernels
    assert [name.partition(", ")[2] for name in names[half : half + 4]] == list(
        dict.fromkeys((gpu_check.PLUS, *gpu_check.MODELS))
    )
    parts = [name.partition(",")[0] for name in names]
    assert parts.index("compilers") > len(parts) - 30 and set(parts[-24:]) == {"tiles"}


REPORT = {
    "machine": {"device": "a GPU"},
    "seconds": 1.0,
    "ceilings": {"flops": 4e14, "bytes": 3e12},
    "models": {
        name: {
            "one image": {
                "milliseconds": 1.9,
                "warm_up_seconds": 30.0,
                "instances": 100,
            },
            "second warm-up": 3.0,
            "side by side": {
                "ours": 1.9,
                "ours, full-size masks": 9.0,
                "published": 19.5,
                "published, masks left on the device": 17.0,
            },
            "agreement": {"matched": 98, "instances": 100, "mean_mask_iou": 0.99},
            "work": {"flops": 1e11, "limit": 0.2},
            "images a second": {"batch 8": 1600.0},
            "stages": {"NMS": 0.01, "re-scoring": 0.1},
            "deformable": 0.3,
            "memory": {"device": 600.0, "device_peak": 900.0, "process": 1200.0},
        }
        for name in ("yolact_plus_resnet50", "yolact_resnet50")
    },
    "cameras": {"yolact_plus_resnet50": {"images_per_second": 500.0, "longest": 40.0}},
    "compilers": {
        "yolact_plus_resnet50": {
            "inductor": {"seconds": 60.0, "milliseconds": {"plain": 2.0, "compiled": 1.0}}
        }
    },
    "tiles": {"C3": {"16x16x16": {"1x4": 0.1}}},
    "kernels": {"preprocessing": {"twin": {"milliseconds": 0.1, "error": 0.001}}},
    "accuracy": {"float32": 51.6, "half": 51.4, "objects": 300},
}


def test_aims_are_told_apart():
    reached = {aim: reached for aim, _, reached in gpu_report.aims(REPORT)}
    assert reached["yolact_plus_resnet50: under 2 ms an image"] == "yes"
    assert reached["yolact_plus_resnet50: 10 times the published rate"] == "no"
    assert reached["embedded model: mask AP in half precision within 0.1"] == "no"
    assert reached["yolact_plus_resnet50: deformable convolution, 10% of the time at most"] == "no"
    assert reached["yolact_plus_resnet50: NMS, 5% of the time at most"] == "yes"
    assert reached["yolact_resnet50: over 1,500 images a second"] == "yes"
    assert reached["yolact_resnet50: 35% of the matrix rate"] == "yes"
    assert reached["yolact_resnet50: under 600 MB of the device"] == "no"
    assert reached["yolact_resnet50: with CUDA itself, under 1,500 MB"] == "yes"
    assert reached["yolact_plus_resnet50: four cameras of 30 Hz"] == "no"
    assert reached["yolact_resnet50: captured in 10 s"] == "yes"


def test_what_is_wrong_is_told_and_not_only_measured():
    report = copy.deepcopy(REPORT)
    twin = {"milliseconds": 0.1, "error": 0.02}
    errors = {"nearly": 0.03, "far": 0.05, "broken": float("nan"), "zeros": 1.0}
    report["kernels"] = {
        name: {"twin": twin, "kernel": {"milliseconds": 0.1, "error": error}}
        for name, error in errors.items()
    }
    report["models"]["yolact_resnet50"]["agreement"]["matched"] = 0
    reached = {aim: reached for aim, _, reached in gpu_report.aims(report)}
    assert gpu_report.wrong_kernels(report) == ["far", "broken", "zeros"]
    assert reached["kernel nearly: as exact as its twin"] == "yes"
    assert reached["kernel broken: as exact as its twin"] == "no"
    same = "finds what the published implementation does"
    assert reached[f"yolact_plus_resnet50: {same}"] == "yes"
    assert reached[f"yolact_resnet50: {same}"] == "no"


def test_any_part_of_the_report_may_be_missing():
    whole = gpu_report.to_markdown(REPORT)
    assert "| inductor | 2.00 | 1.00 | 2.00 | 60.00 |" in whole
    assert "98 of 100 instances" in whole
    assert "inputs, splits, warps) for C3: 16x16x16x1x4 0.100 ms." in whole
    assert "| preprocessing | 0.100 | 0.001 | not used |" in whole
    assert gpu_report.to_markdown({})
    for key in REPORT:
        less = gpu_report.to_markdown({name: REPORT[name] for name in REPORT if name != key})
        assert less != whole
    for key in REPORT["models"]["yolact_plus_resnet50"]:
        report = copy.deepcopy(REPORT)
        del report["models"]["yolact_plus_resnet50"][key]
        assert gpu_report.to_markdown(report) != whole


def test_kernels_are_compared_under_the_interpreter(repository: Path):
    pytest.importorskip("triton")
    code = """
import json, torch, gpu_kernels
device = torch.device("cpu")
cases = gpu_kernels.builders(device, small=True).items()
found = {name: gpu_kernels.check(make(), device, small=True) for name, make in cases}
(shape,) = gpu_kernels.layers(small=True).values()
(size,) = gpu_kernels.tile_sizes(small=True)
print(json.dumps([found, gpu_kernels.sweep_tiles(device, shape, size)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository,
        env={
            **os.environ,
            "TRITON_INTERPRET": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{repository}:tools",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    found, tiles = json.loads(done.stdout)
    assert len(tiles) == 3
    assert len(found) == 5
    for name, case in found.items():
        limit = 0.05 if name == "mask packing" else 1e-3
        assert case["kernel"]["error"] < limit, name


def test_a_kernel_that_writes_nothing_is_seen(monkeypatch: pytest.MonkeyPatch):
    device, found = torch.device("cpu"), {}
    monkeypatch.setattr(gpu_kernels.kernels, "usable", lambda *_: True)
    for name, pack in (("right", pack_plain), ("idle", lambda *_: None)):
        masks = SimpleNamespace(pack=pack)
        monkeypatch.setattr(gpu_kernels.kernels, "masks", masks, raising=False)
        case = gpu_kernels.builders(device, small=True)["mask packing"]()
        found[name] = gpu_kernels.check(case, device, small=True)
    assert found["right"]["kernel"]["error"] == found["idle"]["twin"]["error"] == 0
    assert found["idle"]["kernel"]["error"] > 0.5


def test_a_twin_that_no_graph_can_hold_costs_its_own_time_alone(monkeypatch: pytest.MonkeyPatch):
    device = torch.device("cpu")
    (make,) = (
        each for name, each in gpu_kernels.builders(device, small=True).items() if "deform" in name
    )

    def refuse(*_: object) -> None:
        raise RuntimeError("no graph holds it")

    monkeypatch.setattr(gpu_kernels, "as_graph", refuse)
    with pytest.warns(RuntimeWarning, match="the twin is not timed: no graph holds it"):
        found = gpu_kernels.check(make(), device, small=True)
    assert found["twin"].keys() == {"error"}
    assert "| x | not measured | " in gpu_report.to_markdown({"kernels": {"x": found}})


def test_a_kernel_that_does_not_run_is_no_result(monkeypatch: pytest.MonkeyPatch):
    """Its twin takes its place everywhere, and must not be taken for it."""
    case = gpu_kernels.builders(torch.device("cpu"), small=True)["preprocessing"]()
    asked = iter((True, False))
    monkeypatch.setattr(gpu_kernels.kernels, "usable", lambda *_: next(asked))
    case = dataclasses.replace(case, kernel=case.twin)
    with pytest.raises(RuntimeError, match=f"the kernel {case.name} does not run"):
        gpu_kernels.check(case, torch.device("cpu"), small=True)


def test_a_large_image_is_made_of_small_ones():
    photo = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    tiled = gpu_steps.tiled(photo, (5, 4))
    assert tiled.shape == (5, 4, 3)
    assert (tiled[2:4, :3] == photo).all() and (tiled[4, 3] == photo[0, 0]).all()


def test_estimates(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_check, "MODELS", gpu_check.MODELS[:2])  # to count takes seconds each
    assert gpu_check.main(["--estimate"]) == 0
    text = capsys.readouterr().out
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| Jetson AGX")]
    single, many = (float(row[2].split("(")[0]) for row in rows)
    # 118 GFLOP at 42.5 TFLOP/s take 2.8 ms; a batch reads the weights once for all its images.
    assert 2.8 < many < single < 6
