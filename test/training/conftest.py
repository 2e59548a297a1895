"""A small data set and a small network, so that a training run takes seconds."""

import csv
import dataclasses
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolact_ros.training.settings import ScheduleSettings, TrainingSettings


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """Images of discs and squares on noise, in COCO's format with polygons."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    content = {
        "categories": [{"id": 5, "name": "disc"}, {"id": 9, "name": "square"}],
        "images": [],
        "annotations": [],
    }
    for image_id in range(1, 7):
        image = generator.integers(0, 90, (96, 96, 3), np.uint8)
        for kind in (5, 9):
            x, y = (int(v) for v in generator.integers(20, 76, 2))
            radius = int(generator.integers(10, 20))
            points = 24 if kind == 5 else 4
            angles = np.arange(points) * 2 * np.pi / points + np.pi / 4
            outline = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
            outline = outline.clip(0, 95)
            colour = (255, 160, 0) if kind == 5 else (0, 160, 255)
            cv2.fillPoly(image, [outline.round().astype(np.int32)], colour)
            low, high = outline.min(axis=0), outline.max(axis=0)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": kind,
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                    "area": float(np.prod(high - low)),
                    "segmentation": [outline.ravel().tolist()],
                    "iscrowd": 0,
                }
            )
        name = f"{image_id}.png"
        cv2.imwrite(str(folder / "images" / name), image)
        content["images"].append({"id": image_id, "file_name": name, "height": 96, "width": 96})
    path = folder / "shapes.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def settings(shapes, tmp_path):
    """Six iterations on `shapes`."""
    return TrainingSettings(
        train=(str(shapes),),
        output=str(tmp_path / "run"),
        model="yolact_person_lite",
        network={"image_size": 64, "fpn_channels": 8, "mask_rescoring": False},
        start="nothing",
        schedule=ScheduleSettings(
            iterations=12, batch_size=4, learning_rate=2e-3, warmup_iterations=2, ema=0.9
        ),
        workers=0,
        save_every=2,
        log_every=1,
        accelerator="cpu",
        devices=1,
    )


@pytest.fixture(scope="session")
def change_schedule():
    """Settings with another schedule."""

    def change(settings, **changes):
        schedule = dataclasses.replace(settings.schedule, **changes)
        return dataclasses.replace(settings, schedule=schedule)

    return change


@pytest.fixture(scope="session")
def losses():
    """The loss of each iteration, from the log files of all runs in a folder, or of one."""

    def read(output, runs="version_*/"):
        found = {}
        for path in sorted(Path(output).glob(f"{runs}metrics.csv")):
            # Files of runs that were killed may end within a line.
            whole_lines = path.read_text().rpartition("\n")[0].splitlines()
            for row in csv.DictReader(whole_lines):
                if row.get("loss"):  # or have nothing but the first columns
                    found[int(row["step"])] = float(row["loss"])
        return found

    return read


@pytest.fixture(scope="session")
def arguments():
    """The command line that asks for settings, as far as the tests change them."""

    def line(settings):
        schedule = settings.schedule
        names = ("iterations", "batch_size", "learning_rate", "warmup_iterations", "ema")
        return [
            *(sys.executable, "-m", "yolact_ros.cli", "train"),
            f"--train=[{settings.train[0]}]",
            f"--output={settings.output}",
            f"--model={settings.model}",
            f"--network={json.dumps(settings.network)}",
            f"--start={settings.start}",
            *(f"--schedule.{name}={getattr(schedule, name)}" for name in names),
            f"--losses.masks_per_image={json.dumps(settings.losses.masks_per_image)}",
            f"--workers={settings.workers}",
            f"--save_every={settings.save_every}",
            "--log_every=1",
            "--accelerator=cpu",
            "--devices=1",
        ]

    return line
