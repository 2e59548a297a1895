"""Benchmark results: data classes, Markdown tables and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_ros.benchmark.agreement import Agreement
from yolact_ros.benchmark.memory import Memory
from yolact_ros.benchmark.node import INSTANCES, NodeStage
from yolact_ros.benchmark.timing import Timing
from yolact_ros.benchmark.work import Ceilings


@dataclass(frozen=True)
class Machine:
    """The machine that was measured."""

    processor: str
    threads: int
    """Number of PyTorch's threads on the host."""
    device: str
    """Devices that the networks run on."""
    software: str
    """Versions of Python and PyTorch."""
    ceilings: dict[str, Ceilings]
    """PyTorch's ceilings, by precision and device."""


@dataclass(frozen=True)
class BatchReport:
    """Times of one batch size."""

    images: int
    total: Timing
    """Time from images to `Instances`, both in host memory."""
    stages: dict[str, Timing]
    flops: int
    """Floating-point operations of the network."""
    bytes: int | None
    """Bytes that its layers read and write; None for 8-bit networks, which mix precisions."""
    limit: float | None
    """Milliseconds of the layers at PyTorch's ceilings; None if these were not measured."""

    @property
    def frames_per_second(self) -> float:
        return 1000 * self.images / self.total.median

    @property
    def network(self) -> float:
        """Milliseconds of the network."""
        parts = ("network", "backbone", "FPN", "protonet", "heads")
        return sum(self.stages[name].median for name in parts if name in self.stages)


@dataclass(frozen=True)
class ModelReport:
    """One of our models on one backend."""

    name: str
    description: str
    instances: int
    """Number of instances found in the image."""
    single: BatchReport
    best: BatchReport
    """The batch size with the most frames per second; may be `single` itself."""
    memory: Memory | str | None
    """None if it was not measured, a reason if that failed."""
    node: dict[str, NodeStage] | str | None
    """Stages of the node, by name; None if not requested, a reason if it could not be measured."""

    @property
    def batches(self) -> tuple[BatchReport, ...]:
        """Batch size 1 and, if larger, the best batch size."""
        return (self.single, self.best) if self.best.images > 1 else (self.single,)


@dataclass(frozen=True)
class ContenderReport:
    """One implementation, ours or another, of the side-by-side comparison."""

    name: str
    note: str
    timing: Timing
    """Time from an image to masks of its size, both in host memory."""
    instances: int
    speed_up: float | None
    """Speed-up of ours over the published implementation with the same weights, if it ran."""
    agreement: Agreement | None
    """Agreement of ours with the same implementation."""


@dataclass(frozen=True)
class Report:
    """A whole run."""

    command: str
    machine: Machine
    image: tuple[int, int]
    """(height, width) in pixels."""
    score_threshold: float
    models: tuple[ModelReport, ...]
    side_by_side: tuple[ContenderReport, ...]


def to_markdown(report: Report) -> str:
    """The report as tables."""
    machine, (height, width) = report.machine, report.image
    ceilings = "; ".join(
        f"{name} {each.flops / 1e9:.0f} GFLOP/s, {each.bytes / 1e9:.1f} GB/s"
        for name, each in machine.ceilings.items()
    )
    lines = [
        f"`{report.command}`",
        "",
        f"{machine.processor}, {machine.threads} threads; networks on {machine.device}; "
        f"{machine.software}. Image {width} x {height}, score threshold {report.score_threshold}. "
        f"PyTorch's matrix product and copy: {ceilings or 'not measured'}.",
    ]
    for model in report.models:
        lines += ["", *_model_table(model)]
    if report.models:
        lines += ["", *_limit_table(report.models)]
    if report.side_by_side:
        lines += ["", *_side_by_side_table(report.side_by_side)]
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    aligned = [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        for row in (header, *rows)
    ]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return [f"| {' | '.join(row)} |" for row in (aligned[0], rule, *aligned[1:])]


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _pair(timing: Timing | NodeStage | None) -> tuple[str, str]:
    return ("", "") if timing is None else (_ms(timing.median), _ms(timing.percentile_99))


def _model_table(model: ModelReport) -> list[str]:
    batches = model.batches
    header = ["ms"]
    for batch in batches:
        header += [f"batch {batch.images}: median", "99 %"]
    names = dict.fromkeys(name for batch in batches for name in batch.stages)
    rows = [[name, *(v for b in batches for v in _pair(b.stages.get(name)))] for name in names]
    rows.append(["end to end", *(v for b in batches for v in _pair(b.total))])
    rows.append(["frames a second", *(v for b in batches for v in (_ms(b.frames_per_second), ""))])
    empty = [""] * 2 * (len(batches) - 1)
    node = model.node if isinstance(model.node, dict) else {}
    rows += [[f"node: {name}", *_pair(each), *empty] for name, each in node.items()]
    notes = []
    if node:
        notes = ["", f"node: its own work for an image with {INSTANCES} instances"]
    elif model.node is not None:
        notes = ["", f"The node with {model.name}: not measured: {model.node}"]
    best = "; batch 1 had the highest throughput of those tried" if len(batches) == 1 else ""
    return [
        f"**{model.description}**: {model.instances} instances, {model.single.total.rounds} rounds"
        f"{best}",
        "",
        *_table(header, rows),
        *notes,
    ]


def _limit_table(models: Sequence[ModelReport]) -> list[str]:
    header = (
        "an image", "GFLOP", "MB moved", "limit, ms", "network, ms", "times the limit",
        "host MiB", "of it libraries", "device MiB",
    )  # fmt: skip
    rows, failed = [], []
    for model in models:
        memory = model.memory
        if isinstance(memory, str):
            failed += ["", f"Memory of {model.name}: not measured: {memory}"]
        used = ("", "", "")
        if isinstance(memory, Memory):
            used = (f"{memory.host:.0f}", f"{memory.imports:.0f}", f"{memory.device:.0f}")
        rows.append([model.name, *_distance(model.single), *used])
        rows += [
            [f"{model.name}, batch {each.images}", *_distance(each), "", "", ""]
            for each in model.batches[1:]
        ]
    return [
        *_table(header, rows),
        *failed,
        "",
        "Limit: time for plain convolutions, layer by layer, at PyTorch's rates for a large matrix "
        "product and a large copy, in the model's precision; not measured for 8 bits. It can be "
        "beaten: a backend whose kernels are faster than PyTorch's matrix product, or need fewer "
        "multiplications (Winograd), goes below it.",
    ]


def _distance(batch: BatchReport) -> tuple[str, str, str, str, str]:
    """Format GFLOP, MB, limit and time per image of the batch, and time relative to the limit."""
    count, moved, limit = batch.images, batch.bytes, batch.limit
    return (
        f"{batch.flops / count / 1e9:.1f}",
        "" if moved is None else f"{moved / count / 1e6:.0f}",
        "not measured" if limit is None else _ms(limit / count),
        _ms(batch.network / count),
        "" if limit is None else f"{batch.network / limit:.2f}",
    )


def _side_by_side_table(contenders: Sequence[ContenderReport]) -> list[str]:
    header = ("image to full-size masks", "median, ms", "99 %", "frames a second", "instances")
    rows = [
        [
            f"{each.name} ({each.note})" if each.note else each.name,
            *_pair(each.timing),
            _ms(1000 / each.timing.median),
            str(each.instances),
        ]
        for each in contenders
    ]
    lines = [f"Side by side, interleaved, {contenders[0].timing.rounds} rounds", ""]
    lines += _table(header, rows)
    for each in contenders:
        if each.agreement is not None:
            found = each.agreement
            lines += [
                "",
                f"{each.name}: {each.speed_up:.2f} times as fast as the published implementation; "
                f"{found.matched} of {found.instances} instances are the same, scores within "
                f"{found.score_difference:.1g}, mask IoU {found.mask_iou:.3f} or more.",
            ]
    return lines


def write_json(report: Report, path: Path) -> None:
    """Write the whole report: data classes become objects, timings also get their percentiles."""
    path.write_text(json.dumps(report, indent=2, default=_fields) + "\n")


def _fields(value: object) -> dict[str, Any]:
    """Return the fields of a data class; for a timing also its percentiles."""
    if isinstance(value, Timing):
        return {"median": value.median, "percentile_99": value.percentile_99, **vars(value)}
    return vars(value)
