"""The programs in docs/node.md do what the text says."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("yolact_ros.msg", reason="needs the messages of this package, built")

from yolact_ros import masks

MAIN = """
#include <iostream>
#include <iterator>

struct Mask {uint32_t height, width; std::vector<uint8_t> data;};

int main(int, char ** words)
{
  Mask mask{uint32_t(std::stoul(words[1])), uint32_t(std::stoul(words[2])), {}};
  std::cin >> std::noskipws;
  mask.data.assign(std::istreambuf_iterator<char>(std::cin), {});
  for (auto pixel : decode_rle(mask)) {std::cout << char('0' + pixel);}
}
"""


@pytest.fixture
def program(repository):
    """A function: the first program in a language."""
    text = (repository / "docs/node.md").read_text()
    return lambda language: re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)[1]


def test_the_subscriber_in_python(graph, weights, image, image_message, program, tmp_path):
    graph.start(weights=weights, score_threshold=0.0, top_k=5)
    camera, output = graph.camera(), tmp_path / "output.txt"
    with output.open("w") as file:
        reader = subprocess.Popen(
            [sys.executable, "-u", "-c", program("python")], stdout=file, stderr=file
        )
        try:
            graph.wait_until(
                lambda: camera(image_message(image)) or output.read_text().count("\n") >= 5,
                "five instances",
            )
        finally:
            reader.kill()
            reader.wait()
    for line in output.read_text().splitlines()[:5]:
        name, score, pixels, size = line.split(maxsplit=3)
        assert name in ("cat", "dog", "person") and 0 < float(score) <= 1
        assert int(pixels) >= 0 and size == "(120, 160)"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_masks_in_cpp(program, tmp_path):
    source, reader = tmp_path / "reader.cpp", tmp_path / "reader"
    source.write_text(f"#include <string>\n{program('cpp')}{MAIN}")
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-o", str(reader)]
    subprocess.run(["g++", str(source), *flags], check=True, env={**os.environ, "LC_ALL": "C"})
    rng = np.random.default_rng(0)
    for height, width, share in ((1, 1, 1), (3, 5, 0.5), (40, 300, 0.01), (70, 1000, 0)):
        mask = rng.random((height, width)) < share
        data, words = masks.encode(mask, "rle"), [str(reader), str(height), str(width)]
        told = subprocess.run(words, input=data, capture_output=True, check=True).stdout
        np.testing.assert_array_equal(np.frombuffer(told, "u1") - ord("0"), mask.ravel())
        for broken in (data[:-4], data + b"\1\0\0\0"):
            assert subprocess.run(words, input=broken, capture_output=True).returncode != 0
