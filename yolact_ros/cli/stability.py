"""`yolact stability`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from yolact_ros.cli.files import find_images
from yolact_ros.cli.options import add_model_options, make_segmenter
from yolact_ros.cli.videos import Video
from yolact_ros.engine import Image
from yolact_ros.evaluation.stability import measure_stability, write_stability
from yolact_ros.image_files import read_image


def run(arguments: Sequence[str]) -> None:
    """Measure how steady masks are in a video, once motion is accounted for."""
    parser = argparse.ArgumentParser(prog="yolact stability", description=run.__doc__)
    parser.add_argument("path", type=Path, help="a video, or a folder of frames in order of name")
    parser.add_argument("--output", type=Path, help="folder for stability.json and stability.png")
    parser.add_argument("--score", type=float, default=0.3, help="minimum score, 0 to 1")
    add_model_options(parser)
    options = parser.parse_args(arguments)
    segmenter = make_segmenter(options, options.score)
    print(segmenter.description)
    frames = read_frames(options.path)
    result = measure_stability(segmenter, tqdm(frames, "frames", disable=None))
    kept, vanished, appeared = (
        sum(getattr(step, name) for step in result.steps)
        for name in ("kept", "vanished", "appeared")
    )
    print(
        f"{len(result.steps) + 1} frames, {kept} masks matched between frames: mean IoU "
        f"{_text(result.iou, '.3f')}; flicker {_text(result.flicker, '.1%')} "
        f"({vanished} instances vanished, {appeared} appeared)"
    )
    if options.output is not None:
        write_stability(result, options.output)
        print(f"results: {options.output}")


def _text(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def read_frames(path: Path) -> Iterator[Image]:
    """Yield the frames of a video or of a folder of images. Raises UnreadableError for others."""
    if path.is_dir():
        yield from map(read_image, find_images(path))
        return
    with Video(path) as video:
        yield from video
