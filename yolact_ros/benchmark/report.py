"""What a benchmark found: data classes, Markdown tables and JSON."""

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
    """Where it was measured."""

    processor: str
    threads: int
    """That PyTorch computes with on the host."""
    device: str
    """Where the networks run."""
    software: str
    """Versions of Python and PyTorch."""
    ceilings: dict[str, Ceilings]
    """Of PyTorch, by kind of number and device."""


@dataclass(frozen=True)
class BatchReport:
    """Times of one batch size."""

    images: int
    total: Timing
    """Images in the host's memory to `Instances` there."""
    stages: dict[str, Timing]
    flops: int
    """Of the network."""
    bytes: int | None
    """That its layers read and write; None of networks in 8 bits, which mix kinds."""
    limit: float | None
    """Milliseconds that they take at PyTorch's ceilings; None where these were not measured."""

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
    """That it found in the image."""
    single: BatchReport
    best: BatchReport
    """Of the batch size with most frames a second; may be `single` itself."""
    memory: Memory | str | None
    """None where it was not measured, a reason where that failed."""
    node: dict[str, NodeStage] | str | None
    """Stages of an image's way through the node, by name; None where it was not asked for, a reason
    where it could not be measured."""

    @property
    def batches(self) -> tuple[BatchReport, ...]:
        """One image, and the best batch where that has more."""
        return (self.single, self.best) if self.best.images > 1 else (self.single,)


@dataclass(frozen=True)
class ContenderReport:
    """Ours or another's, side by side."""

    name: str
    note: str
    timing: Timing
    """An image in the host's memory to masks of its size there."""
    instances: int
    speed_up: float | None
    """Of ours over the published implementation of the same weights; None where it did not run."""
    agreement: Agreement | None
    """Of ours with the same."""


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
    """Of an image of the batch: arithmetic, bytes, limit, time, and how far that is from it."""
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
    """Write all of it: data classes become objects, and each timing its median and 99 % too."""
    path.write_text(json.dumps(report, indent=2, default=_fields) + "\n")


def _fields(value: object) -> dict[str, Any]:
    """Of a data class; of a timing also what its properties say."""
    if isinstance(value, Timing):
        return {"median": value.median, "percentile_99": value.percentile_99, **vars(value)}
    return vars(value)
