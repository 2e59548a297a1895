"""`yolact table`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from yolact_ros.data import DataSource, read_json
from yolact_ros.engine.device import choose_device
from yolact_ros.engine.runtimes import BACKENDS
from yolact_ros.evaluation.compare import (
    RANDOM,
    MeasuredRow,
    Setup,
    compare,
    compare_stages,
)
from yolact_ros.evaluation.papers import COMPARISONS, Comparison
from yolact_ros.image_files import PHOTOS, read_image
from yolact_ros.network import CONFIGS, config_of

PHOTO = "crossing.jpg"


def run(arguments: Sequence[str]) -> None:
    """Print a table from the papers next to values measured here."""
    options = _parser().parse_args(arguments)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)  # fail before the work, not after it
    comparison = COMPARISONS[options.table]
    setup = Setup(
        image=read_image(options.image or PHOTOS / PHOTO),
        device=options.device,
        precision=options.precision,
        rounds=options.rounds,
        backend=options.backend,
        base=config_of(options.model) if options.model else None,
        weights=tuple(options.weights),
    )
    source, remark = _source(options.data, has_ap=bool(comparison.rows))
    if source is None:
        print(remark, flush=True)  # early, in case another file was meant
    if comparison.rows:
        rows = compare(comparison, setup, source)
    else:
        rows = compare_stages(comparison, setup)
    print(f"Table {options.table} of {comparison.paper}: {comparison.title}\n")
    print(_format(rows) + "\n")
    remarks = (*_remarks(comparison, setup, rows), remark if source else "", comparison.note)
    print("\n".join(filter(None, remarks)))
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


def _parser() -> argparse.ArgumentParser:
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
        help="a file or a published model's name, for all rows that it fits or for ROW alone; "
        "repeatable",
    )
    parser.add_argument("--model", default="", help=f"instead of the paper's: {', '.join(CONFIGS)}")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="auto", help="auto, float32, float16 or bfloat16")
    parser.add_argument("--backend", default="torch", choices=BACKENDS, help="what runs a network")
    parser.add_argument("--image", type=Path, help="the image to time; default: a shipped one")
    parser.add_argument("--rounds", type=int, default=10, help="number of timings per row")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers too")
    return parser


def _source(text: str | None, has_ap: bool) -> tuple[DataSource | None, str]:
    """Return the data to measure AP on, if any, and a remark on it. Raises DataError."""
    if not has_ap:
        return None, "no AP: this table has only times"
    if text is None:
        return None, "no AP: no data was given (--data; the papers use COCO val2017)"
    source = DataSource.parse(text)
    if not source.annotations.exists():
        return None, f"no AP: {source.annotations} is not there"
    read_json(source.annotations)
    return source, f"AP: {source.annotations}, in percent; none for random weights"


_COLUMNS = {
    "paper AP": "paper_ap",
    "paper ms": "paper_milliseconds",
    "AP": "ap",
    "ms": "milliseconds",
    "p99": "percentile_99",
    "detection": "detection",
}


def _format(rows: Sequence[MeasuredRow]) -> str:
    """Format a line for each row; empty columns are left out."""
    values = {title: [getattr(row, name) for row in rows] for title, name in _COLUMNS.items()}
    columns = {t: column for t, column in values.items() if any(v is not None for v in column)}
    width = 2 + max(len(row.name) for row in rows)
    lines = [" " * width + "".join(f"{title:>11}" for title in columns) + "  network, weights"]
    for i, row in enumerate(rows):
        numbers = (column[i] for column in columns.values())
        cells = ("-" if number is None else f"{number:.1f}" for number in numbers)
        text = "".join(f"{cell:>11}" for cell in cells)
        what = f"{row.network}, {row.weights}" if row.network else "-"
        lines.append(f"{row.name:{width}}{text}  {what}")
    return "\n".join(lines)


def _remarks(comparison: Comparison, setup: Setup, rows: Sequence[MeasuredRow]) -> list[str]:
    height, width = setup.image.shape[:2]
    if any(row.paper_milliseconds is not None for row in rows):
        remarks = [f"paper: mask AP on {comparison.data}, milliseconds an image on a Titan Xp"]
    else:
        remarks = ["paper: figures left out, since they could not be verified"]
    remarks.append(
        f"here: {choose_device(setup.device)}, {setup.backend}; milliseconds from one image of "
        f"{width} x {height} pixels to full-size masks, median of {setup.rounds} interleaved rounds"
    )
    if any(row.detection is not None for row in rows):
        remarks.append("detection: NMS and small masks, a part of the time")
    if choose_device(setup.device).type == "cuda" and any(row.name == "standard" for row in rows):
        remarks.append("standard NMS runs without a CUDA graph: the times differ by more than NMS")
    if any(row.weights == RANDOM for row in rows):
        remarks.append("random weights: made so that the maximum number of instances is found")
    return remarks
