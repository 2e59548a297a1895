"""What tests share."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

if "PYTEST_XDIST_WORKER" in os.environ:  # it is not alone: threads would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"  # of processes to come
    torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent

LONG = (
    "test_export.py",
    "test_resuming.py",
    "test_processes.py",
    "test_train.py",
    "test_losses.py",
    "test_interpreter.py",
    "test_run.py",
    "test_gpu_check.py",
    "test_demo.py",
    "test_measure.py",
    "test_process.py",
    "test_node.py",
    "test_exported.py",
    "test_lifecycle.py",
)
"""Modules that take longest, of the node's tests too."""


def pytest_configure(config: pytest.Config) -> None:
    """Without `-m cuda` there is no GPU: tests of what runs anywhere run on the CPU."""
    if config.getoption("markexpr") != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first: of two workers neither is left with one in the end."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device, and pytest -m cuda")
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference outputs and data sets; the test is skipped where there is none."""
    folder = Path(os.environ.get("YOLACT_ROS_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the reference and data folder {folder} (YOLACT_ROS_SHARED)")
    return folder


@pytest.fixture(scope="session")
def reference_weights() -> ModuleType:
    """`fill(name, shape)` and `image(height, width, seed)`: the same values everywhere."""
    path = ROOT / "test" / "reference" / "weights.py"
    spec = importlib.util.spec_from_file_location("reference_weights", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def leave_repetitions_out() -> Callable[[nn.ModuleList], None]:
    """Keeps the first of the blocks of an EfficientNet that have a shortcut, which have as many
    channels in as out: most of an export's time goes into converting and compiling layers."""

    def leave_out(blocks: nn.ModuleList) -> None:
        repeated = [i for i, block in enumerate(blocks) if block.shortcut]
        for i in repeated[1:]:
            blocks[i] = nn.Identity().eval()

    return leave_out


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small layers on several threads of a busy machine mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
