"""`yolact explain`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from yolact_ros.cli.files import check_output
from yolact_ros.cli.options import add_model_options, make_segmenter
from yolact_ros.evaluation.explain import explain, write_figures
from yolact_ros.image_files import read_image


def run(arguments: Sequence[str]) -> None:
    """Show the prototypes of an image and how they add up to the mask of each instance."""
    parser = argparse.ArgumentParser(prog="yolact explain", description=run.__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("--output", type=Path, default=Path("explanation"), help="folder to write")
    parser.add_argument("--score", type=float, default=0.3, help="minimum score, 0 to 1")
    add_model_options(parser)
    options = parser.parse_args(arguments)
    check_output(options.output, options.image)
    image = read_image(options.image)
    segmenter = make_segmenter(options, options.score)
    print(segmenter.description)
    for path in write_figures(image, explain(segmenter, image), options.output):
        print(path)
