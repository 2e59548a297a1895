"""`yolact eval`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from yolact_ros.cli.options import add_model_options, make_segmenter
from yolact_ros.data import DataSource
from yolact_ros.evaluation.coco import evaluate
from yolact_ros.evaluation.report import draw_worst, plot_precision_recall, table, write_results


def run(arguments: Sequence[str]) -> None:
    """Measure COCO's average precision of masks and boxes on COCO-format data."""
    parser = argparse.ArgumentParser(prog="yolact eval", description=run.__doc__)
    parser.add_argument("file", nargs="+", help="FILE.json or FILE.json:FOLDER")
    parser.add_argument("--classes", action="store_true", help="a line for each class too")
    parser.add_argument(
        "--output", type=Path, help="folder for results (COCO server's format) and pictures"
    )
    parser.add_argument("--worst", type=int, default=20, metavar="N", help="pictures of N images")
    parser.add_argument("--worst-score", type=float, default=0.3, metavar="SCORE")
    add_model_options(parser)
    options = parser.parse_args(arguments)
    segmenter = make_segmenter(options, score_threshold=0)
    settings = segmenter.settings
    print(segmenter.description)
    for text in options.file:
        source = DataSource.parse(text)
        segmenter.settings = settings
        result = evaluate(segmenter, source, progress=True)
        print(f"\n{source.annotations}, {len(result.image_ids)} images, in percent")
        print(table(result, options.classes))
        if options.output is None:
            continue
        folder = options.output
        if len(options.file) > 1:
            folder = folder / f"{source.annotations.parent.name}-{source.annotations.stem}"
        write_results(result, folder)
        plot_precision_recall(result.masks or result.boxes, folder / "precision_recall.png")
        segmenter.settings = dataclasses.replace(settings, score_threshold=options.worst_score)
        draw_worst(segmenter, source, result, folder / "worst", options.worst)
        print(f"results: {folder}")
