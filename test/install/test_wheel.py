"""The Python distribution without ROS 2: what `pip install .` brings, and that it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

BUILD = "import setuptools.build_meta, sys; setuptools.build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the sources as they are now, built with the setuptools of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("yolact_ros", "requirements"):
        shutil.copytree(
            repository / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=source, check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the distribution in it; a wheel of pure Python is installed by unpacking."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the installed distribution and without a trace of ROS 2."""
    hidden = ("AMENT_", "COLCON_", "PYTHON", "ROS_", "LD_LIBRARY_PATH")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=installed,
        env={**variables, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_has_every_file_of_the_package(repository: Path, installed: Path) -> None:
    package = repository / "yolact_ros"
    for path in package.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            assert (installed / path.relative_to(repository)).is_file(), path
    assert {path.name for path in installed.iterdir()} == {
        "yolact_ros",
        "yolact_ros-0.1.0.dist-info",
    }


def test_segments_without_ros(installed: Path) -> None:
    code = """
import sys, cv2
from importlib.resources import files
from yolact_ros import Segmenter
photo = files("yolact_ros") / "demo" / "photos" / "motorcycle.jpg"
instances = Segmenter(backend="torch")(cv2.imread(str(photo)))
assert len(instances) > 0 and instances.masks.any()
assert not any(name == "rclpy" or name.endswith("_msgs") for name in sys.modules)
"""
    result = python(installed, "-c", code)
    assert result.returncode == 0, result.stderr


def test_the_command_runs_without_ros(installed: Path) -> None:
    entry_points = next(installed.glob("*.dist-info")).joinpath("entry_points.txt").read_text()
    assert "yolact = yolact_ros.cli:main" in entry_points
    result = python(installed, "-c", "from yolact_ros.cli import main; main()", "--help")
    assert result.returncode == 0, result.stderr
    assert "train" in result.stdout
