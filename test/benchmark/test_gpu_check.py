"""The tool that measures GPUs, as far as it runs without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu_check
import gpu_report
import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_says_that_it_needs_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert gpu_check.main(["--output", str(tmp_path)]) == gpu_check.NO_DEVICE
    assert "no CUDA device" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("one_thread")
def test_everything_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    parts = [part for part in gpu_check.PARTS if part != "compilers"]  # which take minutes
    arguments = ["--device", "cpu", "--quick", "--output", str(tmp_path), "--parts", *parts]
    assert gpu_check.main(arguments) == 0
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    (model,) = report["models"].values()
    stages = {"preprocessing", "network", "NMS", "masks", "packing", "re-scoring"}
    assert model["stages"].keys() == stages and min(model["stages"].values()) > 0
    assert model["instances"] > 0 and model["limit"] > 0
    assert model["images_per_second"].keys() == {"1", "2"}
    assert len(report["precision"]) == 2
    for precision in report["precision"].values():
        assert precision["harmless"] and precision["instances"] > 0
    text = (tmp_path / "gpu_check.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert "| yolact_plus_resnet50: under 2 ms an image |" in text


def test_aims_are_told_apart():
    model = {
        "milliseconds": {"ours": 1.9, "published": 18.0},
        "stages": {"NMS": 0.01, "re-scoring": 0.1},
        "deformable": 0.3,
        "images_per_second": {"1": 500.0, "32": 1600.0},
        "share_of_matrix_rate": 0.4,
        "memory": {"device": 600.0},
        "warm_up_seconds": 3.0,
    }
    models = {"yolact_plus_resnet50": model, "yolact_resnet50": model}
    aims = {
        aim: reached for aim, _, reached in gpu_report.aims({"models": models, "precision": {}})
    }
    assert aims["yolact_plus_resnet50: under 2 ms an image"] == "yes"
    assert aims["yolact_plus_resnet50: 10 times the published rate"] == "no"
    assert aims["yolact_plus_resnet50: deformable convolution, 10% of the time at most"] == "no"
    assert aims["yolact_plus_resnet50: NMS, 5% of the time at most"] == "yes"
    assert aims["yolact_resnet50: over 1,500 images a second"] == "yes"
    assert aims["yolact_resnet50: under 600 MB of the device"] == "no"


def test_a_compiler_that_is_missing_leaves_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CXX", "no-such-compiler")
    arguments = ["--device", "cpu", "--quick", "--output", str(tmp_path), "--parts", "compilers"]
    assert gpu_check.main(arguments) == 0
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    (found,) = report["compilers"].values()
    assert found["milliseconds"].keys() == found["seconds"].keys() == {"torch"}
    assert found["problems"].keys() == {"inductor", "package"}
    printed = capsys.readouterr().out
    assert "| inductor | MissingExtraError: the backend inductor needs a C++ compiler" in printed
    assert "| yolact_plus_resnet50 by | ms an image |" in printed


def test_kernels_are_compared_under_the_interpreter(repository: Path):
    pytest.importorskip("triton")
    code = (
        "import json, torch, gpu_kernels\n"
        "print(json.dumps(gpu_kernels.check_kernels(torch.device('cpu'), small=True)))"
    )
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
    found = json.loads(done.stdout)
    assert len(found.pop("tiles")["small, batch 1"]) == 3
    assert len(found) == 4
    for name, case in found.items():
        limit = 0.05 if name == "mask packing" else 1e-3
        assert case["kernel"]["error"] < limit, name


def test_estimates(capsys: pytest.CaptureFixture[str]):
    assert gpu_check.main(["--estimate"]) == 0
    text = capsys.readouterr().out
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| Jetson AGX")]
    single, many = (float(row[2].split("(")[0]) for row in rows)
    # 118 GFLOP at 42.5 TFLOP/s take 2.8 ms; a batch reads the weights once for all its images.
    assert 2.8 < many < single < 6
