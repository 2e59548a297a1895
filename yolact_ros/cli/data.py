"""`yolact data`."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from yolact_ros.cli.files import short_names
from yolact_ros.data import CocoFile, DataError, DataSource, Report, check, crowd_remark
from yolact_ros.data.problems import gather
from yolact_ros.data.samples import draw_samples
from yolact_ros.data.sbd import find_dataset, read_sbd
from yolact_ros.data.split import split
from yolact_ros.network.classes import PASCAL_CLASSES


def run(arguments: Sequence[str]) -> None:
    """Check, split and convert data sets."""
    options = _parser().parse_args(arguments)
    if options.command == "check":
        _check(options.file, not options.boxes, options.samples)
    elif options.command == "split":
        _split(options.file, options.share, None if options.last else options.seed)
    else:
        _convert_sbd(options.folder, options.splits, options.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="yolact data", description=run.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser(
        "check",
        help="say what is wrong with COCO-format data",
        description="Check every entry and every image. Exits with status 1 if any is bad.",
    )
    checking.add_argument("file", nargs="+", help="FILE.json or FILE.json:FOLDER")
    checking.add_argument(
        "--boxes", action="store_true", help="accept objects without masks: for mask_branch none"
    )
    checking.add_argument("--samples", metavar="PNG", type=Path, help="draw a page of samples")
    splitting = commands.add_parser(
        "split",
        help="hold back some images of a file for validation",
        description="Write FILE-train.json and FILE-val.json beside a COCO-format file.",
    )
    splitting.add_argument("file", help="FILE.json or FILE.json:FOLDER")
    splitting.add_argument(
        "--share", type=float, default=0.2, help="fraction of images to hold back; default: 0.2"
    )
    splitting.add_argument("--seed", type=int, default=0, help="random seed; default: 0")
    splitting.add_argument(
        "--last",
        action="store_true",
        help="hold back the last images of the file, not random ones: for video frames, which "
        "resemble their neighbours",
    )
    converting = commands.add_parser(
        "convert-sbd", help="write Pascal SBD's annotations in COCO's format"
    )
    converting.add_argument("folder", type=Path, help="benchmark_RELEASE, as it was unpacked")
    converting.add_argument("--splits", nargs="+", default=["train", "val"], metavar="SPLIT")
    converting.add_argument("--output", type=Path, help="folder to write; default: that of img")
    return parser


def _check(files: Sequence[str], masks: bool, samples: Path | None) -> None:
    wrong = 0
    sources = [DataSource.parse(text) for text in files]
    names = short_names([source.annotations for source in sources])
    for source, name in zip(sources, names, strict=True):
        report = check(source, decode=True, progress=True, masks=masks)
        print(_summary(report))
        for problem in gather(report.problems):
            print(f"  {problem.where}: {problem.reason}")
        wrong += len(report.problems)
        if samples is not None:
            page = samples
            if len(files) > 1:
                page = page.with_name(f"{page.stem}-{name}{page.suffix}")
            draw_samples(report.dataset, page)
            print(f"  samples: {page}")
    if wrong:
        raise DataError(f"{wrong} entries are wrong")


def _split(file: str, share: float, seed: int | None) -> None:
    dataset = DataSource.parse(file).read()
    whole, folder = dataset.source.annotations, dataset.folder
    for name, part in zip(("train", "val"), split(dataset.content, share, seed), strict=True):
        path = whole.with_name(f"{whole.stem}-{name}.json")
        _write(DataSource(path, folder), part)


def _write(source: DataSource, content: CocoFile) -> None:
    source.annotations.write_text(json.dumps(content) + "\n")
    counts = f"{len(content['images'])} images, {len(content['annotations'])} objects"
    print(f"{source.annotations}:{source.images}  {counts}")


def _convert_sbd(folder: Path, splits: Sequence[str], output: Path | None) -> None:
    dataset = find_dataset(folder)
    output = output or dataset
    output.mkdir(parents=True, exist_ok=True)
    for name in splits:
        content = read_sbd(dataset, name, PASCAL_CLASSES, progress=True)
        _write(DataSource(output / f"{name}.json", dataset / "img"), content)


def _summary(report: Report) -> str:
    source, content = report.dataset.source, report.dataset.content
    names = {c["id"]: c["name"] for c in content["categories"]}
    counts = Counter(names[a["category_id"]] for a in content["annotations"])
    crowds = sum(bool(a.get("iscrowd")) for a in content["annotations"])
    empty = len(
        {i["id"] for i in content["images"]} - {a["image_id"] for a in content["annotations"]}
    )
    common = ", ".join(f"{name} {count}" for name, count in counts.most_common(8))
    absent = [name for name in names.values() if name not in counts]
    lines = [
        f"{source.annotations}: {len(content['images'])} images, {empty} without objects; "
        f"{len(content['annotations'])} objects, {crowds} of them crowd regions; "
        f"{len(names)} classes: {common}{', ...' if len(counts) > 8 else ''}"
    ]
    if absent:
        lines.append(f"no object of {', '.join(absent[:8])}{', ...' if len(absent) > 8 else ''}")
    if remark := crowd_remark(content):
        lines.append(remark)
    lines.append(f"{len(report.problems) or 'no'} wrong entries")
    return "\n  ".join(lines)
