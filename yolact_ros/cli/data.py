"""`yolact data check`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from yolact_ros.data import DataError, DataSource, Report, check
from yolact_ros.data.samples import draw_samples


def run(arguments: Sequence[str]) -> None:
    """Check COCO-format data sets: every entry, every picture. Ends with status 1 if one is bad."""
    parser = argparse.ArgumentParser(prog="yolact data", description=run.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check", help="say what is wrong, and draw a page of samples")
    checking.add_argument("file", nargs="+", help="FILE.json or FILE.json:FOLDER")
    checking.add_argument("--samples", metavar="PNG", type=Path, help="draw a page of samples")
    options = parser.parse_args(arguments)
    wrong = 0
    for text in options.file:
        source = DataSource.parse(text)
        report = check(source, decode=True, progress=True)
        print(_summary(source, report))
        for problem in report.problems:
            print(f"  {problem.where}: {problem.reason}")
        wrong += len(report.problems)
        if options.samples is not None:
            page = options.samples
            if len(options.file) > 1:
                page = page.with_name(f"{page.stem}-{source.annotations.stem}{page.suffix}")
            draw_samples(source, report.content, page)
            print(f"  samples: {page}")
    if wrong:
        raise DataError(f"{wrong} entries are wrong")


def _summary(source: DataSource, report: Report) -> str:
    content = report.content
    names = {c["id"]: c["name"] for c in content["categories"]}
    counts = Counter(names[a["category_id"]] for a in content["annotations"])
    crowds = sum(bool(a.get("iscrowd")) for a in content["annotations"])
    empty = len(
        {i["id"] for i in content["images"]} - {a["image_id"] for a in content["annotations"]}
    )
    common = ", ".join(f"{name} {count}" for name, count in counts.most_common(8))
    return (
        f"{source.annotations}: {len(content['images'])} pictures, {empty} without objects; "
        f"{len(content['annotations'])} objects, {crowds} of them crowd regions; "
        f"{len(names)} classes: {common}{', ...' if len(counts) > 8 else ''}\n"
        f"  {len(report.problems) or 'no'} wrong entries"
    )
