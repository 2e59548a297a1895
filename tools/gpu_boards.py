"""Minimum times of a network on GPUs that are not at hand, from their data sheets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from gpu_report import table

from yolact_ros.benchmark.work import Ceilings, Work, count_work, layers_of
from yolact_ros.detection import DetectionSettings
from yolact_ros.engine.fixed import CANDIDATES
from yolact_ros.engine.graphs import MASK_AREA
from yolact_ros.network import config_of
from yolact_ros.network.anchors import feature_sizes
from yolact_ros.network.yolact import MaskIoUNet

REACHED = 0.4
"""Fraction of the limit that networks are assumed (not measured) to reach without a compiler.
Single images on large GPUs reach less: their layers do not fill the chip."""


PCI_EXPRESS = 50e9
"""Bytes per second, of the 63e9 of 16 lanes of the fifth generation."""


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
    """Make a Markdown table of minimum milliseconds per image and board, in float16."""
    works = [count_work(config_of(name), batch, torch.float16) for name in models]
    rows = [
        ("GFLOP an image", *(f"{work.flops / batch / 1e9:.0f}" for work in works)),
        ("MB moved an image", *(f"{work.bytes / batch / 1e6:.0f}" for work in works)),
    ]
    for board in BOARDS:
        limits = [work.limit(board.ceilings) / batch for work in works]
        rows.append((board.name, *(f"{ms:.2f} ({1000 * REACHED / ms:.0f})" for ms in limits)))
    return "\n".join(table((f"batch {batch}, float16", *models), rows))


def parts(model: str, board: Board, image_size: tuple[int, int]) -> str:
    """Make a Markdown table of minimum microseconds of the parts of one image, in float16.

    It ignores launches, and that small layers do not fill the chip.
    """
    config = config_of(model)
    network = count_work(config, 1, torch.float16)
    cells = sum(side**2 for side in feature_sizes(config.image_size))
    anchors = cells * config.anchors_per_cell
    side = 2 * feature_sizes(config.image_size)[0]
    height, width = image_size
    detections = DetectionSettings().top_k
    with torch.device("meta"):
        layers = layers_of(MaskIoUNet(config.num_classes), torch.empty(detections, 1, side, side))
    rescoring = Work(tuple(layers), 2)
    plain = count_work(config.replace(dcn_variant="none"), 1, torch.float16)
    memory, product = board.ceilings.bytes, board.ceilings.flops
    logits, listed = anchors * (config.num_classes + 1), CANDIDATES * config.num_classes
    masks = detections * side**2
    packed = MASK_AREA * height * ((width + 7) // 8)  # as much as the graph copies
    rows = {
        "preprocessing: image in, network input out": (
            (3 * height * width + 2 * 3 * config.image_size**2) / memory
        ),
        f"network, {len(network.layers)} layers": network.limit(board.ceilings) / 1000,
        "of it deformable convolutions, beyond plain ones": (
            (network.limit(board.ceilings) - plain.limit(board.ceilings)) / 1000
        ),
        "NMS: class logits read in float16, the candidates' scores written and read": (
            (2 * logits + 2 * 4 * listed) / memory
        ),
        "masks: prototypes in, cropped masks out": max(
            2 * masks * config.num_prototypes / product,
            2 * (masks + config.num_prototypes * side**2) / memory,
        ),
        "packing: masks in, bits out": (2 * masks + packed) / memory,
        f"copies over PCI Express at {PCI_EXPRESS / 1e9:.0f} GB/s": (
            (3 * height * width + packed) / PCI_EXPRESS
        ),
    }
    if config.mask_rescoring:
        rows["re-scoring"] = rescoring.limit(board.ceilings) / 1000
    header = f"{model}, one image of {width} x {height}, {board.name}", "us"
    return "\n".join(
        table(header, [(name, f"{1e6 * seconds:.1f}") for name, seconds in rows.items()])
    )
