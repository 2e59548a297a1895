"""The commands that build a TensorRT engine; TensorRT itself needs an NVIDIA GPU."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("onnx", reason="needs the extra export")


@pytest.fixture(scope="module")
def onnx_file(exported):
    return exported("small", ".onnx")


@pytest.fixture(scope="module")
def run(repository):
    """Runs the tool; `path` replaces PATH."""

    def call(*arguments: object, path: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable,
                str(repository / "tools" / "tensorrt_engine.py"),
                *map(str, arguments),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": path or os.environ["PATH"]},
            check=False,
        )

    return call


def test_the_commands_fit_the_network(run, onnx_file):
    result = run(onnx_file, "--batch", 4, "--show")
    assert result.returncode == 0, result.stderr
    build, time = result.stdout.splitlines()
    for shape in ("--minShapes=images:1x3x", "--optShapes=images:4x3x", "--maxShapes=images:4x3x"):
        assert shape in build
    assert "--fp16" in build and f"--saveEngine={onnx_file.with_suffix('.engine')}" in build
    assert f"--loadEngine={onnx_file.with_suffix('.engine')}" in time
    assert "--fp16" not in run(onnx_file, "--float32", "--show").stdout


def test_without_tensorrt_it_says_what_to_install(run, onnx_file, tmp_path):
    result = run(onnx_file, path=str(tmp_path))
    assert result.returncode == 1
    assert "there is no program trtexec" in result.stderr and "--trtexec" in result.stderr


@pytest.mark.parametrize("content", [None, b"", b"not a model at all"])
def test_another_file_is_refused(run, tmp_path, content):
    path = tmp_path / "other.onnx"
    if content is not None:
        path.write_bytes(content)
    result = run(path, "--show")
    assert result.returncode == 1 and str(path) in result.stderr
    assert "Traceback" not in result.stderr


def test_a_batch_out_of_range_is_refused(run, onnx_file):
    result = run(onnx_file, "--batch", 0, "--show")
    assert result.returncode == 2 and "1 to 256" in result.stderr
