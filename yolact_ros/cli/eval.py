"""`yolact eval`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from yolact_ros.cli.files import check_output, short_names
from yolact_ros.cli.options import add_model_options, make_segmenter
from yolact_ros.data import DataSource, crowd_remark, other_classes
from yolact_ros.engine import Segmenter
from yolact_ros.engine.device import choose_device
from yolact_ros.evaluation.coco import accuracy_of
from yolact_ros.evaluation.findings import find, find_parallel, read_dataset
from yolact_ros.evaluation.mistakes import draw_mistakes, find_mistakes
from yolact_ros.evaluation.report import (
    plot_precision_recall,
    table,
    write_results,
    write_summary,
)


def run(arguments: Sequence[str]) -> None:
    """Measure COCO's average precision of masks and boxes on COCO-format data."""
    options = _parser().parse_args(arguments)
    if options.devices < 1:
        raise ValueError(f"devices={options.devices} is not allowed: it must be at least 1")
    if not 0 <= options.score <= 1:
        raise ValueError(f"score={options.score} is not allowed: it must be 0 to 1")
    if options.worst < 0:
        raise ValueError(f"worst={options.worst} is not allowed: it must be 0 or more")
    sources = [DataSource.parse(text) for text in options.file]
    folders = _make_folders(options.output, [source.annotations for source in sources])
    segmenter = make_segmenter(options, score_threshold=0)
    print(segmenter.description)
    # Report problems of any file before measuring the first.
    datasets = [read_dataset(segmenter, source) for source in sources]
    for dataset, folder in zip(datasets, folders, strict=True):
        source, content = dataset.source, dataset.content
        if options.devices > 1:
            findings = find_parallel(_makers(options, segmenter), source, progress=True)
        else:
            findings = find(segmenter, dataset, progress=True)
        if folder is not None:
            write_results(findings, folder)
        result, images = accuracy_of(findings, content), len(findings.image_ids)
        print(f"\n{source.annotations}, {images} images, in percent")
        if remark := crowd_remark(content):
            print(remark)
        if others := other_classes(content, segmenter.class_names):
            print(f"not measured are {others}: the model has no such class")
        print(table(result, options.classes))
        if not content["annotations"]:
            print("no accuracy: the file has no annotations; --output writes what was found")
        if folder is None:
            continue
        write_summary(result, images, folder / "summary.json")
        if content["annotations"]:
            plot_precision_recall(result.masks or result.boxes, folder / "precision_recall.png")
            mistakes = find_mistakes(segmenter, dataset, findings, options.score)
            draw_mistakes(segmenter, mistakes, folder, options.worst)
        print(f"results: {folder}")


def _make_folders(output: Path | None, files: Sequence[Path]) -> list[Path | None]:
    """Make the folder for the results of each file, before the work rather than after it.

    Raises ValueError if results could overwrite a file.
    """
    if output is None:
        return [None] * len(files)
    folders = [output] if len(files) == 1 else [output / name for name in short_names(files)]
    for folder, file in zip(folders, files, strict=True):
        check_output(folder, file)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return [*folders]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="yolact eval", description=run.__doc__)
    parser.add_argument("file", nargs="+", help="FILE.json or FILE.json:FOLDER")
    parser.add_argument("--classes", action="store_true", help="a line for each class too")
    parser.add_argument(
        "--output", type=Path, help="folder for results (COCO server's format), plots and overlays"
    )
    parser.add_argument("--worst", type=int, default=20, metavar="N", help="draw N worst images")
    parser.add_argument(
        "--score",
        type=float,
        default=0.3,
        help="minimum score of what confusion.png and worst/ show, 0 to 1",
    )
    parser.add_argument(
        "--devices",
        type=int,
        default=1,
        metavar="N",
        help="use N GPUs, or N processes on the CPU; the numbers are the same",
    )
    add_model_options(parser)
    return parser


def _makers(options: argparse.Namespace, segmenter: Segmenter) -> list[Callable[[], Segmenter]]:
    """Return functions that make a segmenter on each GPU, starting at its own, or on the CPU.

    Raises ValueError for a missing GPU.
    """
    own, makers = segmenter.device, list[Callable[[], Segmenter]]()
    for i in range(options.devices):
        name = f"cuda:{(own.index or 0) + i}" if own.type == "cuda" else own.type
        theirs = argparse.Namespace(**vars(options) | {"device": str(choose_device(name))})
        makers.append(partial(make_segmenter, theirs, 0))
    return makers
