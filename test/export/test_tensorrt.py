"""The commands that build a TensorRT engine; TensorRT itself needs an NVIDIA GPU."""

import subprocess
import sys

import pytest
import tensorrt_engine

pytest.importorskip("onnx", reason="needs the extra export")


@pytest.fixture(scope="module")
def onnx_file(exported):
    return exported("small", ".onnx")


def test_the_commands_fit_the_network(onnx_file, capsys):
    assert tensorrt_engine.main([str(onnx_file), "--batch", "4", "--show"]) == 0
    build, time = capsys.readouterr().out.splitlines()
    for shape in ("--minShapes=images:1x3x", "--optShapes=images:4x3x", "--maxShapes=images:4x3x"):
        assert shape in build
    assert "--fp16" in build and f"--saveEngine={onnx_file.with_suffix('.engine')}" in build
    assert f"--loadEngine={onnx_file.with_suffix('.engine')}" in time
    assert tensorrt_engine.main([str(onnx_file), "--float32", "--show"]) == 0
    assert "--fp16" not in capsys.readouterr().out


TRTEXEC = """#!/bin/sh
case "$1" in --help) echo "HELP";; *) echo "$@" >> "$0.log";; esac
"""


@pytest.mark.parametrize(
    ("version", "half"), [("--fp16  Enable fp16 precision", True), ("", False)]
)
def test_the_precision_is_left_to_the_file_where_tensorrt_wants_that(
    onnx_file, tmp_path, capsys, version, half
):
    """TensorRT 11 has no such option and would end with an error."""
    program = tmp_path / "trtexec"
    program.write_text(TRTEXEC.replace("HELP", version))
    program.chmod(0o755)
    words = [str(onnx_file), "--engine", str(tmp_path / "e.engine"), "--trtexec", str(program)]
    assert tensorrt_engine.main(words) == 0
    build, time = (tmp_path / "trtexec.log").read_text().splitlines()
    assert ("--fp16" in build) == half and "--loadEngine" in time
    assert ("takes the precision from the file" in capsys.readouterr().out) != half


def test_it_needs_no_installation(repository, onnx_file):
    tool = repository / "tools" / "tensorrt_engine.py"
    command = [sys.executable, "-I", str(tool), str(onnx_file), "--show"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "--saveEngine" in result.stdout, result.stderr


def test_without_tensorrt_it_says_what_to_install(onnx_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tensorrt_engine.main([str(onnx_file)]) == 1
    told = capsys.readouterr().err
    assert "there is no program trtexec" in told and "--trtexec" in told


@pytest.mark.parametrize("content", [None, b"", b"not a model at all"])
def test_another_file_is_refused(tmp_path, content, capsys):
    path = tmp_path / "other.onnx"
    if content is not None:
        path.write_bytes(content)
    assert tensorrt_engine.main([str(path), "--show"]) == 1
    assert str(path) in capsys.readouterr().err


def test_a_batch_out_of_range_is_refused(onnx_file, capsys):
    with pytest.raises(SystemExit, match="2"):
        tensorrt_engine.main([str(onnx_file), "--batch", "0", "--show"])
    assert "1 to 256" in capsys.readouterr().err
