"""`yolact predict`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from yolact_ros.cli.files import choose_targets, find_files, is_video
from yolact_ros.cli.options import add_model_options, make_segmenter
from yolact_ros.detection import Instances
from yolact_ros.engine import Segmenter, draw_overlay
from yolact_ros.pictures import read_picture, write_picture

Image = npt.NDArray[np.uint8]


def run(arguments: Sequence[str]) -> None:
    """Segment pictures, folders of pictures and videos; write overlays and JSON."""
    parser = argparse.ArgumentParser(prog="yolact predict", description=run.__doc__)
    parser.add_argument("path", nargs="+", type=Path, help="a picture, a folder or a video")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder to write")
    parser.add_argument("--score", type=float, default=0.3, help="least score, 0 to 1")
    parser.add_argument("--no-overlay", action="store_true", help="write JSON alone")
    add_model_options(parser)
    options = parser.parse_args(arguments)
    files = [file for path in options.path for file in find_files(path)]
    targets = choose_targets(files, options.output)
    segmenter = make_segmenter(options, options.score)
    print(segmenter.description)
    options.output.mkdir(parents=True, exist_ok=True)
    for file, target in targets.items():
        overlay = not options.no_overlay
        if is_video(file):
            frames = predict_video(segmenter, file, target, overlay)
            print(f"{file}: {frames} frames")
        else:
            instances = predict_picture(segmenter, file, target, overlay)
            found = ", ".join(
                f"{name} {score:.2f}"
                for name, score in zip(instances.names, instances.scores.tolist(), strict=True)
            )
            print(f"{file}: {found or 'nothing'}")
    print(f"written to {options.output}")


def _ending(target: Path, ending: str) -> Path:
    return target.with_name(target.name + ending)  # the name may have dots of its own


def predict_picture(segmenter: Segmenter, file: Path, target: Path, overlay: bool) -> Instances:
    """Segment a picture; write `target`.json and, with `overlay`, `target`.png."""
    image = read_picture(file)
    instances = segmenter(image)
    _ending(target, ".json").write_text(json.dumps(to_json(instances)) + "\n")
    if overlay:
        write_picture(_ending(target, ".png"), draw_overlay(image, instances))
    return instances


def predict_video(segmenter: Segmenter, file: Path, target: Path, overlay: bool) -> int:
    """Segment a video; write `target`.jsonl, a line a frame, and `target`.mp4. Returns frames."""
    video = cv2.VideoCapture(str(file))
    if not video.isOpened():
        raise ValueError(f"{file} is not a video that can be read")
    rate = video.get(cv2.CAP_PROP_FPS) or 25.0
    total = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT))) or None
    writer: cv2.VideoWriter | None = None
    count = 0
    with _ending(target, ".jsonl").open("w") as lines:
        for frame in tqdm(video_frames(video), file.name, total, disable=not sys.stderr.isatty()):
            instances = segmenter(frame)
            lines.write(json.dumps({"frame": count, **to_json(instances)}) + "\n")
            count += 1
            if overlay:
                if writer is None:
                    size = (frame.shape[1], frame.shape[0])
                    code = cv2.VideoWriter.fourcc(*"mp4v")
                    film = _ending(target, ".mp4")
                    writer = cv2.VideoWriter(str(film), code, rate, size)
                    if not writer.isOpened():
                        raise ValueError(f"{film} cannot be written")
                writer.write(draw_overlay(frame, instances))
    video.release()
    if writer is not None:
        writer.release()
    return count


def video_frames(video: cv2.VideoCapture) -> Iterator[Image]:
    """The frames that are left of an open video, BGR [H, W, 3]."""
    while True:
        good, frame = video.read()
        if not good:
            return
        yield np.asarray(frame, np.uint8)


def to_json(instances: Instances) -> dict[str, Any]:
    """Instances as plain values; masks are COCO's uncompressed RLE (columns first, zeros first)."""
    height, width = instances.image_size
    masks = None if instances.small_masks is None else instances.masks.numpy()
    found = []
    for i, name in enumerate(instances.names):
        entry: dict[str, Any] = {
            "class_id": int(instances.class_ids[i]),
            "class_name": name,
            "score": round(float(instances.scores[i]), 4),
            "mask_score": round(float(instances.mask_scores[i]), 4),
            "box": [round(v, 2) for v in instances.boxes[i].tolist()],
        }
        if masks is not None:
            entry["mask"] = {"size": [height, width], "counts": _run_lengths(masks[i])}
        found.append(entry)
    return {"height": height, "width": width, "instances": found}


def _run_lengths(mask: npt.NDArray[np.bool_]) -> list[int]:
    flat = np.concatenate([[False], mask.T.ravel()])
    changes = np.flatnonzero(np.diff(flat))
    edges = np.concatenate([[0], changes, [mask.size]])
    return [int(n) for n in np.diff(edges)]
