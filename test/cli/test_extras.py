"""What is not installed is named, and only when it is needed."""

import subprocess
import sys

import pytest

from yolact_ros.extras import how_to_install

BLOCKED = """
import sys
for name in {names!r}:
    sys.modules[name] = None
"""


def run(code, *names):
    code = BLOCKED.format(names=names) + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("train", "lightning", "train"),
        ("train", "jsonargparse", "train"),
        ("eval", "faster_coco_eval", "eval"),
        ("eval", "matplotlib", "eval"),
        ("stability", "matplotlib", "eval"),
        ("data", "faster_coco_eval", "eval"),
        ("bench", "matplotlib", "bench"),
    ],
)
def test_a_missing_extra_is_named(command, package, extra):
    code = f"from yolact_ros.cli import main; sys.exit(main([{command!r}, '--help']))"
    result = run(code, package)
    assert result.returncode == 1
    assert result.stderr.strip() == f"{package} is missing: {how_to_install(extra)}"


def test_losses_and_prediction_need_no_extra():
    code = """
import yolact_ros.training.losses, yolact_ros.training.augmentation
from yolact_ros.cli import main
try:
    main(["predict", "--help"])
except SystemExit as end:
    assert end.code == 0
"""
    result = run(code, "lightning", "jsonargparse", "faster_coco_eval", "matplotlib", "yaml")
    assert result.returncode == 0, result.stderr
    assert "usage: yolact predict" in result.stdout
