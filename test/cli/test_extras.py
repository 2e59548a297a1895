"""What is not installed is named, and only when it is needed."""

import subprocess
import sys

from yolact_ros.extras import how_to_install

BLOCKED = """
import sys
for name in {names!r}:
    sys.modules[name] = None
"""


def run(code, *names):
    code = BLOCKED.format(names=names) + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


MISSING = [
    ("train", "lightning", "train"),
    ("train", "jsonargparse", "train"),
    ("eval", "faster_coco_eval", "eval"),
    ("eval", "matplotlib", "eval"),
    ("stability", "matplotlib", "eval"),
    ("data", "faster_coco_eval", "eval"),
    ("bench", "matplotlib", "bench"),
]


def test_a_missing_extra_is_named():
    """In processes that begin alike: what takes them long to import is torch."""
    code = f"""
import os, sys, torch
for command, package, _ in {MISSING}:
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        sys.modules[package] = None
        from yolact_ros.cli import main
        status = main([command, "--help"])
        sys.stderr.flush()
        os._exit(status)
"""
    result = run(code)
    assert result.stdout.split() == ["1"] * len(MISSING), result.stderr
    assert result.stderr.splitlines() == [
        f"{package} is missing: {how_to_install(extra)}" for _, package, extra in MISSING
    ]


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
