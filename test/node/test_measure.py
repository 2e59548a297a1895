"""The measuring executable, for seconds instead of minutes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("yolact_ros.msg", reason="needs the messages of this package, built")

from ament_index_python.packages import get_package_prefix

from yolact_ros.node.measure.camera import ENCODINGS, CameraSettings
from yolact_ros.node.measure.main import main
from yolact_ros.node.measure.scaling import Load, plot
from yolact_ros.node.measure.soak import Interval, Limits, soak
from yolact_ros.node.measure.stages import NETWORK, OWN
from yolact_ros.node.pipeline import image_of, read_message
from yolact_ros.node.statistics import Latency


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(get_package_prefix("yolact_ros"), "lib", "yolact_ros", "yolact_measure")
    return subprocess.run(
        [shutil.which("python3") or "python3", str(program), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_stages_of_one_image(tmp_path, weights):
    results = tmp_path / "stages.json"
    # fmt: off
    result = run(
        "stages", "--frames", "3", "--rate", "40", "--instances", "7", "--encoding", "jpeg",
        "--size", "160x120", "--weights", weights, "--backend", "torch", "--json", str(results),
    )
    # fmt: on
    assert result.returncode == 0, result.stderr
    content = json.loads(results.read_text())
    assert content["options"]["instances"] == 7 and content["machine"]["cores"] > 0
    stages = {each["name"]: each for each in content["results"]}
    assert list(stages) == [*OWN, *NETWORK, "own work"]
    assert all(0 < each["median"] <= each["percentile_99"] for each in stages.values())
    least = max(stages[name]["median"] for name in OWN)
    assert least < stages["own work"]["median"]
    assert all(name in result.stdout for name in stages)


def test_the_processes_of_a_camera_need_not_wait_for_torch():
    words = "import yolact_ros.node.measure.camera, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", words], check=True)


def test_the_way_of_an_image(tmp_path):
    results = tmp_path / "transport.json"
    result = run("transport", "--frames", "5", "--size", "160x120", "--json", str(results))
    assert result.returncode == 0, result.stderr
    (stage,) = json.loads(results.read_text())["results"]
    assert 0 < stage["median"] <= stage["percentile_99"] < 60_000
    assert f"{stage['median']:.2f}" in result.stdout


def test_a_short_soak(weights, tmp_path):
    results = tmp_path / "soak.json"
    # fmt: off
    result = run(
        "soak", "--seconds", "6", "--interval", "2", "--rate", "20", "--size", "640x480",
        "--cameras", "2",
        "--max-growth", "20", "--max-drift", "5", "--json", str(results),
        "--ros-args", "-p", f"weights:={weights}", "-p", "backend:=torch",
    )
    # fmt: on
    assert result.returncode == 0, result.stdout + result.stderr
    intervals = json.loads(results.read_text())["results"]
    assert [each["start"] for each in intervals] == [0, 2, 4]
    for each in intervals:
        assert each["rate"] > 0
        assert 0 < each["latency"]["median"] <= each["latency"]["percentile_99"]
        assert 50 < each["memory"] < 10_000
    assert "steady" in result.stdout


def test_cameras_from_one_on(weights, tmp_path):
    results = tmp_path / "cameras.json"
    # fmt: off
    result = run(
        "cameras", "--cameras", "2", "--seconds", "2", "--rate", "10", "--size", "160x120",
        "--json", str(results),
        "--ros-args", "-p", f"weights:={weights}", "-p", "backend:=torch",
    )
    # fmt: on
    assert result.returncode == 0, result.stdout + result.stderr
    one, two = json.loads(results.read_text())["results"]
    assert (one["cameras"], two["cameras"]) == (1, 2)
    for each in (one, two):
        assert 0 < each["least_rate"] <= each["rate"] / each["cameras"]
        assert each["answered"] == pytest.approx(min(1, each["rate"] / each["cameras"] / 10))
        assert 0 < each["latency"]["median"] <= each["latency"]["percentile_99"]


def test_the_cost_of_several_cameras_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra eval")
    loads = [Load(n, 10.0, 10.0 / n, 1 / n, Latency(100.0 * n, 150.0 * n)) for n in (1, 2, 3)]
    plot(loads, "cameras", tmp_path / "a.png")
    assert cv2.imread(str(tmp_path / "a.png")).std() > 0


def interval(memory, median):
    return Interval(start=0, rate=1, latency=Latency(median, median), memory=memory)


def test_growth_and_drift_break_the_limits():
    limits = Limits(growth=10, drift=0.2)
    warm_up = interval(500, 900)
    assert limits.broken([warm_up, interval(600, 100), interval(609, 119)]) == []
    (reason,) = limits.broken([warm_up, interval(600, 100), interval(611, 100)])
    assert "memory grew by 11.0 MiB" in reason
    (reason,) = limits.broken([warm_up, interval(600, 100), interval(600, 125)])
    assert "latency rose by 25%" in reason
    # All intervals count, not the two at the ends.
    late = [interval(600, median) for median in (100, 100, 140, 140, 140, 119)]
    (reason,) = limits.broken([warm_up, *late])
    assert "latency rose by 3" in reason
    assert limits.broken([warm_up, *(interval(600, median) for median in (119, 100, 130))]) == []
    with pytest.raises(ValueError, match="at least 3"):
        limits.broken([warm_up, warm_up])


@pytest.mark.parametrize(
    "arguments",
    [
        ["transport", "--frames", "0"],
        ["transport", "--rate", "0"],
        ["soak", "--interval", "-1"],
        ["cameras", "--cameras", "0"],
        ["stages", "--json", "/no/such/folder/x.json"],
        ["soak", "--json", "/tmp"],
        ["cameras", "--plot", "x.foo"],
    ],
)
def test_bad_options_are_told_before_anything_is_measured(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert arguments[1] in capsys.readouterr().err


def test_a_soak_that_would_say_nothing_does_not_begin():
    with pytest.raises(ValueError, match="2 intervals say nothing: at least 3"):
        next(soak(CameraSettings(160, 120, "bgr8", 20.0), 1, 90, 45, []))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_measured_camera_sends_its_photographs(encoding):
    from rclpy.serialization import serialize_message

    settings = CameraSettings(96, 64, encoding, 1)
    for message in settings.messages():
        received = read_message(bytes(serialize_message(message)), settings.compressed)
        image = image_of(received, torch.device("cpu"))
        assert image.shape == (64, 96, 3) and image.std() > 10
