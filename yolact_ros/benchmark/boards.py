"""What a network takes at least on GPUs that are not at hand, from their data sheets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from yolact_ros.benchmark.work import Ceilings, count_work
from yolact_ros.network import config_of

REACHED = 0.4
"""An assumption, not a measurement: a network without its own compiler reaches so much of the
limit. Single images on large GPUs reach less, for their layers do not fill the chip."""


@dataclass(frozen=True)
class Board:
    """A GPU by its data sheet: dense float16 products with float32 sums, and memory."""

    name: str
    ceilings: Ceilings
    source: str


BOARDS = (
    Board(
        "H200 (SXM)",
        Ceilings(989e12, 4.8e12),
        "NVIDIA H200 data sheet: 1,979 TFLOP/s float16 with sparsity, half of it dense; 4.8 TB/s",
    ),
    Board(
        "H100 (SXM)",
        Ceilings(989e12, 3.35e12),
        "NVIDIA H100 data sheet: as H200, 3.35 TB/s",
    ),
    Board(
        "GeForce RTX 4070",
        Ceilings(58e12, 504e9),
        "NVIDIA RTX 4070 specifications: 466 tensor TFLOP/s in float8 with sparsity; an eighth of "
        "it is dense float16 with float32 sums; 192-bit memory at 21 Gbit/s",
    ),
    Board(
        "Jetson AGX Orin 64 GB",
        Ceilings(42.5e12, 204.8e9),
        "NVIDIA Jetson AGX Orin technical brief: GPU 170 TOP/s int8 with sparsity, a quarter of "
        "it is dense float16; 204.8 GB/s",
    ),
    Board(
        "Jetson Orin Nano 8 GB, 25 W",
        Ceilings(16.75e12, 102e9),
        "NVIDIA Jetson Orin Nano Super data sheet: 67 TOP/s int8 with sparsity, a quarter of it "
        "is dense float16; 102 GB/s",
    ),
    Board(
        "Jetson Orin Nano 8 GB, 15 W",
        Ceilings(10e12, 68e9),
        "NVIDIA Jetson Orin Nano data sheet: 40 TOP/s int8 with sparsity; 68 GB/s",
    ),
)


def estimates(models: Sequence[str], batch: int = 1) -> str:
    """A Markdown table: least milliseconds an image of each network on each board, in float16."""
    works = {name: count_work(config_of(name), batch, torch.float16) for name in models}
    lines = [
        f"| batch {batch}, float16 | " + " | ".join(models) + " |",
        "|---|" + "---:|" * len(models),
        "| GFLOP an image | "
        + " | ".join(f"{work.flops / batch / 1e9:.0f}" for work in works.values())
        + " |",
        "| MB moved an image | "
        + " | ".join(f"{work.bytes / batch / 1e6:.0f}" for work in works.values())
        + " |",
    ]
    for board in BOARDS:
        limits = [work.limit(board.ceilings) / batch for work in works.values()]
        cells = [f"{ms:.2f} ({1000 * REACHED / ms:.0f})" for ms in limits]
        lines.append(f"| {board.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
