"""`yolact table`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

from yolact_ros.data import DataSource, read_image
from yolact_ros.engine.device import choose_device
from yolact_ros.evaluation.compare import (
    RANDOM,
    Image,
    Measured,
    Setup,
    compare,
    compare_stages,
)
from yolact_ros.evaluation.papers import COMPARISONS, Comparison
from yolact_ros.network import CONFIGS, config_of

PHOTO = "crossing.jpg"
CANDIDATES = "objects that a network with random weights pretends to see, before NMS"


def run(arguments: Sequence[str]) -> None:
    """Print a table of the papers beside what is measured here."""
    parser = argparse.ArgumentParser(
        prog="yolact table",
        description=run.__doc__,
        epilog="tables:\n" + "\n".join(f"  {n:3} {c.title}" for n, c in COMPARISONS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", choices=COMPARISONS, metavar="TABLE", help=", ".join(COMPARISONS))
    parser.add_argument(
        "--data", metavar="FILE.json[:FOLDER]", help="measure AP on it; the papers: COCO val2017"
    )
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="[ROW=]WEIGHTS",
        help="a file or a published model's name, for the rows that it fits or for one; repeatable",
    )
    parser.add_argument("--model", default="", help=f"instead of the paper's: {', '.join(CONFIGS)}")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="auto", help="auto, float32, float16 or bfloat16")
    parser.add_argument("--image", type=Path, help="the picture to time; default: a shipped one")
    parser.add_argument("--rounds", type=int, default=10, help="times each row is timed")
    parser.add_argument("--candidates", type=int, default=200, help=CANDIDATES)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers too")
    options = parser.parse_args(arguments)
    comparison = COMPARISONS[options.table]
    setup = Setup(
        image=read_image(options.image) if options.image else _shipped_photo(),
        device=options.device,
        precision=options.precision,
        rounds=options.rounds,
        candidates=options.candidates,
        base=config_of(options.model) if options.model else None,
        weights=tuple(options.weights),
    )
    source, remark = _source(options.data)
    if comparison.rows:
        rows = compare(comparison, setup, source)
    else:
        rows = compare_stages(comparison, setup)
    print(f"Table {options.table} of {comparison.paper}: {comparison.title}\n")
    print(_format(rows))
    print("\n" + "\n".join(_remarks(comparison, setup, rows, remark)))
    if options.json is not None:
        content = {
            "table": options.table,
            "device": str(choose_device(setup.device)),
            "image": setup.image.shape[:2],
            "rounds": setup.rounds,
            "data": None if source is None else str(source.annotations),
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def _shipped_photo() -> Image:
    with as_file(files("yolact_ros") / "demo" / "photos" / PHOTO) as path:
        return read_image(path)


def _source(text: str | None) -> tuple[DataSource | None, str]:
    """The data to measure AP on, if it is there, and what to say of it."""
    if text is None:
        return None, "no AP: no data was given (--data; the papers use COCO val2017)"
    source = DataSource.parse(text)
    if not source.annotations.is_file():
        return None, f"no AP: there is no {source.annotations}"
    return source, f"AP: {source.annotations}, in percent; without weights there is none"


def _format(rows: Sequence[Measured]) -> str:
    """A line for each row: the paper's AP and time, then ours."""
    width = 2 + max(len(row.name) for row in rows)
    lines = [
        f"{'':{width}}{'paper':>16}{'here':>40}",
        f"{'':{width}}{'AP':>8}{'ms':>8}{'AP':>10}{'ms':>10}{'p99':>10}{'detection':>10}  weights",
    ]
    for row in rows:
        numbers = (
            _number(row.paper_ap, 8),
            _number(row.paper_milliseconds, 8),
            _number(row.ap, 10),
            _number(row.milliseconds, 10),
            _number(row.percentile_99, 10),
            _number(row.detection, 10),
        )
        lines.append(f"{row.name:{width}}{''.join(numbers)}  {row.weights or '-'}")
    return "\n".join(lines)


def _number(value: float | None, width: int) -> str:
    return f"{'-' if value is None else f'{value:.1f}':>{width}}"


def _remarks(
    comparison: Comparison, setup: Setup, rows: Sequence[Measured], remark: str
) -> list[str]:
    height, width = setup.image.shape[:2]
    model = setup.base.name if setup.base else comparison.base
    remarks = [
        "paper: mask AP on COCO val2017, milliseconds an image on a Titan Xp",
        f"here: {model} on {choose_device(setup.device)}, milliseconds from one image of "
        f"{width} x {height} pixels to its full-size masks,",
        f"  median of {setup.rounds} rounds in which the rows take turns; "
        "detection: NMS and small masks, a part of it",
        remark,
    ]
    if any(row.weights == RANDOM for row in rows):
        remarks.append(f"random weights: {setup.candidates} anchors pass for objects before NMS")
    return [*remarks, comparison.note] if comparison.note else remarks
