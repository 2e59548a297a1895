"""Stability counts changes of masks, not the motion of what they show."""

import json
import math

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from yolact_ros.cli import main
from yolact_ros.detection import Instances, SmallMasks
from yolact_ros.evaluation.stability import (
    Stability,
    Step,
    backward_flow,
    compare_frames,
    write_stability,
)

SIZE = (380, 560)
SHIFT = (14, 9)
# Ellipses on the photograph: centre and half axes. The last one lies where the camera turns away.
OBJECTS = (((250, 200), (60, 90)), ((420, 150), (40, 40)), ((30, 300), (14, 30)))


@pytest.fixture(scope="module")
def photo(repository):
    path = repository / "yolact_ros" / "demo" / "photos" / "riders.jpg"
    return cv2.imread(str(path))


def run(*arguments):
    return main(["stability", *map(str, arguments), "--backend", "torch"])


def view(photo, step):
    """What a camera sees that pans over the photograph."""
    x, y = step * SHIFT[0], step * SHIFT[1]
    return np.ascontiguousarray(photo[y : y + SIZE[0], x : x + SIZE[1]])


def instances(step, objects=OBJECTS, grow=0, class_ids=None):
    """The objects in that view, exactly, or too large by `grow` pixels."""
    masks = []
    for (x, y), (a, b) in objects:
        mask = np.zeros(SIZE, np.float32)
        centre = (x - step * SHIFT[0], y - step * SHIFT[1])
        cv2.ellipse(mask, (centre, (2 * (a + grow), 2 * (b + grow)), 0), 1, cv2.FILLED)
        masks.append(torch.from_numpy(mask))
    whole = torch.tensor([0, 0, SIZE[1], SIZE[0]])
    n = len(masks)
    return Instances(
        boxes=torch.zeros(n, 4),
        scores=torch.ones(n),
        mask_scores=torch.ones(n),
        class_ids=torch.tensor(class_ids or [0] * n),
        image_size=SIZE,
        class_names=("person", "bicycle"),
        stored_masks=SmallMasks(torch.stack(masks), whole.float().expand(n, 4), whole.expand(n, 4)),
    )


def test_the_flow_finds_the_motion(photo):
    source, seen = backward_flow(view(photo, 0), view(photo, 1))
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    error = np.abs(source - np.stack((x, y), axis=2) - SHIFT).max(axis=2)
    assert (error[seen] < 1).mean() > 0.98
    assert 0.9 < seen.mean() < 0.98  # the new margin comes from nowhere


def test_motion_does_not_count(photo):
    first, second = view(photo, 0), view(photo, 1)
    step = compare_frames((first, instances(0)), (second, instances(1)))
    assert (step.kept, step.vanished, step.appeared) == (3, 0, 0) and step.iou > 0.97
    # Without the flow the same masks do not fit.
    still = compare_frames((first, instances(0)), (first, instances(1)))
    assert still.iou < 0.85


def test_masks_that_change_count(photo):
    first, second = view(photo, 0), view(photo, 1)
    objects = OBJECTS[:2]  # whole in both views
    larger = instances(1, objects, grow=10)
    step = compare_frames((first, instances(0, objects)), (second, larger))
    wanted = np.mean([a * b / ((a + 10) * (b + 10)) for _, (a, b) in objects])
    assert step.kept == 2 and step.iou == pytest.approx(wanted, abs=0.02)


def test_what_vanishes_appears_or_changes_its_class(photo):
    first, second = view(photo, 0), view(photo, 1)
    step = compare_frames((first, instances(0)), (second, instances(1, OBJECTS[1:])))
    assert (step.kept, step.vanished, step.appeared) == (2, 1, 0)
    step = compare_frames((first, instances(0, OBJECTS[1:])), (second, instances(1)))
    assert (step.kept, step.vanished, step.appeared) == (2, 0, 1)
    other = instances(1, class_ids=[0, 1, 0])
    step = compare_frames((first, instances(0)), (second, other))
    assert (step.kept, step.vanished, step.appeared) == (2, 1, 1)


def test_what_leaves_the_view_has_not_vanished(photo):
    """Neither has what comes into view appeared."""
    first, second = view(photo, 0), view(photo, 3)
    out = compare_frames((first, instances(0)), (second, instances(3, OBJECTS[:2])))
    assert (out.kept, out.vanished, out.appeared) == (2, 0, 0)
    back = compare_frames((second, instances(3, OBJECTS[:2])), (first, instances(0)))
    assert (back.kept, back.vanished, back.appeared) == (2, 0, 0)


def test_means_are_over_instances():
    steps = (Step(0.9, 3, 0, 1), Step(math.nan, 0, 2, 0), Step(0.5, 1, 0, 0))
    assert Stability(steps).iou == pytest.approx(0.8)
    assert Stability(steps).flicker == pytest.approx(3 / 11)
    assert math.isnan(Stability((Step(math.nan, 0, 0, 0),)).iou)


def test_the_command(photo, tmp_path, capsys):
    folder, output = tmp_path / "frames", tmp_path / "out"
    folder.mkdir()
    for step in range(4):
        cv2.imwrite(str(folder / f"{step}.png"), view(photo, step))
    assert run(folder, "--output", output) == 0
    found = json.loads((output / "stability.json").read_text())
    assert len(found["steps"]) == 3 and sum(step["kept"] for step in found["steps"]) >= 3
    assert 0.6 < found["iou"] < 1
    assert cv2.imread(str(output / "stability.png")) is not None

    # FFV1 loses nothing: all frames are equal.
    writer = cv2.VideoWriter(
        str(tmp_path / "still.avi"), cv2.VideoWriter.fourcc(*"FFV1"), 10, SIZE[::-1]
    )
    for _ in range(3):
        writer.write(view(photo, 0))
    writer.release()
    assert run(tmp_path / "still.avi") == 0
    assert "3 frames" in (printed := capsys.readouterr().out)
    assert "mean IoU 1.000; flicker 0.0%" in printed
    film = (tmp_path / "still.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(film[: len(film) // 2])
    assert run(tmp_path / "cut.avi") == 1
    assert "cut.avi ends after 1 of 3 frames" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "vanished", "ticks"), [(20, 0, 1), (1, 0, 1), (3, 12, 12)])
def test_the_plot_counts_whole_instances(tmp_path, monkeypatch, count, vanished, ticks):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )
    step = Step(0.9, 3, vanished, 0)
    write_stability(Stability((step,) * count), tmp_path)
    above, below = figures[0].axes
    for axis in (above.xaxis, below.yaxis):
        low, high = sorted(axis.get_view_interval())
        shown = [tick for tick in axis.get_majorticklocs() if low <= tick <= high]
        assert all(tick == int(tick) for tick in shown)
    assert {-ticks, 0, ticks} <= set(shown)


def test_frames_are_the_images_of_a_folder(photo, tmp_path, capsys):
    for i in range(2):
        cv2.imwrite(str(tmp_path / f"{i}.png"), photo)
    (tmp_path / "film.mp4").write_text("no image")
    assert run(tmp_path) == 0
    assert "2 frames" in capsys.readouterr().out


def test_unfit_sequences_are_refused(photo, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "0.png"), photo)
    assert run(tmp_path) == 1
    assert "two frames" in capsys.readouterr().err
    cv2.imwrite(str(tmp_path / "1.png"), photo[:200])
    assert run(tmp_path) == 1
    assert "frame 1 has the shape (200, 640, 3)" in capsys.readouterr().err
    for name in ("0", "1"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), photo[:11, :11])
    assert run(tmp_path) == 1
    assert "frame 0 has the shape (11, 11, 3)" in capsys.readouterr().err
    assert run(tmp_path / "none.mp4") == 1
    assert "none.mp4 is not a video" in capsys.readouterr().err


def test_a_sequence_without_instances(tmp_path, capsys):
    for i in range(2):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((90, 120, 3), 128, np.uint8))
    output = tmp_path / "out"
    assert run(tmp_path, "--output", output) == 0
    assert "mean IoU -; flicker - (0 instances" in capsys.readouterr().out
    found = json.loads((output / "stability.json").read_text())
    assert found["iou"] is found["flicker"] is None
