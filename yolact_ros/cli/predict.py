"""`yolact predict`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from yolact_ros.cli.files import choose_targets, find_files, is_video
from yolact_ros.cli.options import add_model_options, make_segmenter
from yolact_ros.cli.videos import Video
from yolact_ros.detection import Instances
from yolact_ros.engine import Image, Segmenter, draw_overlay
from yolact_ros.image_files import UnreadableError, read_image, write_image


def run(arguments: Sequence[str]) -> None:
    """Segment images, folders of images and videos; write overlays and JSON."""
    parser = argparse.ArgumentParser(prog="yolact predict", description=run.__doc__)
    parser.add_argument("path", nargs="+", type=Path, help="an image, a folder or a video")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder to write")
    parser.add_argument("--score", type=float, default=0.3, help="instances score more, 0 to 1")
    parser.add_argument("--no-overlay", action="store_true", help="write JSON alone")
    add_model_options(parser)
    options = parser.parse_args(arguments)
    files = [file for path in options.path for file in find_files(path)]
    targets = choose_targets(files, options.output)
    segmenter = make_segmenter(options, options.score)
    print(segmenter.description)
    options.output.mkdir(parents=True, exist_ok=True)
    unread = 0
    for file, target in targets.items():
        try:
            print(f"{file}: {_predict(segmenter, file, target, not options.no_overlay)}")
        except UnreadableError as error:  # go on with other files; write errors are fatal
            print(f"yolact predict: {error}", file=sys.stderr)
            unread += 1
    print(f"written to {options.output}")
    if unread:
        raise UnreadableError(f"{unread} of {len(targets)} could not be read")


def _predict(segmenter: Segmenter, file: Path, target: Path, overlay: bool) -> str:
    """Segment an image or video; return a summary."""
    if is_video(file):
        return f"{predict_video(segmenter, file, target, overlay)} frames"
    instances = predict_image(segmenter, file, target, overlay)
    scores = zip(instances.names, instances.scores.tolist(), strict=True)
    return ", ".join(f"{name} {score:.2f}" for name, score in scores) or "nothing"


def _ending(target: Path, ending: str) -> Path:
    return target.with_name(target.name + ending)  # the name may have dots of its own


def predict_image(segmenter: Segmenter, file: Path, target: Path, overlay: bool) -> Instances:
    """Segment an image; write `target`.json and, with `overlay`, `target`.png."""
    image = read_image(file)
    instances = segmenter(image)
    _ending(target, ".json").write_text(json.dumps(to_json(instances)) + "\n")
    if overlay:
        write_image(_ending(target, ".png"), draw_overlay(image, instances))
    return instances


def predict_video(segmenter: Segmenter, file: Path, target: Path, overlay: bool) -> int:
    """Segment a video; write `target`.jsonl (a line per frame) and, with `overlay`, `target`.mp4.

    Returns the number of frames.
    """
    count, writer = 0, None
    with ExitStack() as stack:
        video = stack.enter_context(Video(file))
        lines = stack.enter_context(_ending(target, ".jsonl").open("w"))
        quiet = not sys.stderr.isatty()
        for frame in tqdm(video, file.name, video.frames or None, disable=quiet):
            instances = segmenter(frame)
            lines.write(json.dumps({"frame": count, **to_json(instances)}) + "\n")
            count += 1
            if overlay:
                if writer is None:
                    writer = _open_writer(_ending(target, ".mp4"), video.rate, frame)
                    stack.callback(writer.release)
                writer.write(draw_overlay(frame, instances))
    return count


def _open_writer(film: Path, rate: float, frame: Image) -> cv2.VideoWriter:
    """Open an MP4 for frames of the size of `frame`."""
    code, size = cv2.VideoWriter.fourcc(*"mp4v"), (frame.shape[1], frame.shape[0])
    writer = cv2.VideoWriter(str(film), code, rate, size)
    if not writer.isOpened():
        raise ValueError(f"{film} cannot be written")
    return writer


def to_json(instances: Instances) -> dict[str, Any]:
    """Convert instances to plain values; masks are COCO's uncompressed RLE (column-major)."""
    height, width = instances.image_size
    regions = instances.regions() if instances.has_masks else None
    found = []
    for i, name in enumerate(instances.names):
        entry: dict[str, Any] = {
            "class_id": int(instances.class_ids[i]),
            "class_name": name,
            "score": round(float(instances.scores[i]), 4),
            "mask_score": round(float(instances.mask_scores[i]), 4),
            "box": [round(v, 2) for v in instances.boxes[i].tolist()],
        }
        if regions is not None:
            x1, y1, x2, y2 = regions.rectangles[i].tolist()
            columns = np.zeros((x2 - x1, height), np.bool_)
            columns[:, y1:y2] = regions.mask(i).numpy().T
            counts = _run_lengths(columns, x1 * height, width * height)
            entry["mask"] = {"size": [height, width], "counts": counts}
        found.append(entry)
    return {"height": height, "width": width, "instances": found}


def _run_lengths(pixels: npt.NDArray[np.bool_], start: int, total: int) -> list[int]:
    """Return the run lengths of `total` pixels: `pixels` from `start` on, zeros elsewhere."""
    changes = start + np.flatnonzero(np.diff(pixels.ravel(), prepend=False, append=False))
    return [int(n) for n in np.diff(changes[changes < total], prepend=0, append=total)]
