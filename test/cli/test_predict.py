"""`yolact predict` on real files, with random weights of a small network."""

import json

import cv2
import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask

from yolact_ros.cli import main
from yolact_ros.cli.predict import predict_video, to_json
from yolact_ros.detection import Instances, SmallMasks
from yolact_ros.engine import Segmenter
from yolact_ros.network import EMBEDDED, build, save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network that finds something everywhere: its class logits have no preference."""
    torch.manual_seed(0)
    net = build(EMBEDDED, image_size=128, fpn_channels=16, mask_rescoring=False)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(net, path)
    return path


@pytest.fixture(scope="module")
def image():
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 255, (6, 8, 3), np.uint8)
    return cv2.resize(noise, (160, 120), interpolation=cv2.INTER_CUBIC)


def test_a_folder_of_images(weights, image, tmp_path):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), image)
    cv2.imwrite(str(folder / "b.jpg"), image[:50])
    (folder / "notes.txt").write_text("no image")
    arguments = [str(folder), "--output", str(output), "--weights", str(weights)]
    arguments += ["--backend", "torch"]
    assert main(["predict", *arguments, "--score", "0.2", "--top-k", "7"]) == 0
    assert sorted(p.name for p in output.iterdir()) == ["a.json", "a.png", "b.json", "b.png"]
    assert cv2.imread(str(output / "b.png")).shape == (50, 160, 3)

    written = json.loads((output / "a.json").read_text())
    wanted = Segmenter(weights=weights, backend="torch", score_threshold=0.2, top_k=7)(image)
    assert (written["height"], written["width"]) == (120, 160)
    assert len(written["instances"]) == len(wanted) > 0
    for entry, mask, box in zip(written["instances"], wanted.masks, wanted.boxes, strict=True):
        assert entry["class_name"] == "person" and entry["class_id"] == 0
        assert entry["box"] == pytest.approx(box.tolist(), abs=0.01)
        rle = coco_mask.frPyObjects(entry["mask"], 120, 160)
        assert (coco_mask.decode(rle) == mask.numpy()).all()


def test_mask_scores_are_written(repository, tmp_path):
    """The embedded model re-scores its masks."""
    file = repository / "yolact_ros" / "demo" / "photos" / "riders.jpg"
    arguments = ["--output", str(tmp_path), "--backend", "torch", "--no-overlay"]
    assert main(["predict", str(file), *arguments]) == 0
    entries = json.loads((tmp_path / "riders.json").read_text())["instances"]
    found = Segmenter(backend="torch")(cv2.imread(str(file)))
    assert len(found) > 0 and (found.mask_scores < found.scores).all()
    for name, values in (("score", found.scores), ("mask_score", found.mask_scores)):
        assert [entry[name] for entry in entries] == pytest.approx(values.tolist(), abs=1e-3)


@pytest.fixture
def clip(image, tmp_path):
    """A video of 20 frames."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (160, 120))
    for _ in range(20):
        writer.write(image)
    writer.release()
    return path


def test_a_video(weights, clip, tmp_path):
    output = tmp_path / "out"
    arguments = [str(clip), "--output", str(output), "--weights", str(weights)]
    assert main(["predict", *arguments, "--backend", "torch"]) == 0
    lines = [json.loads(line) for line in (output / "clip.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(20))
    overlay = cv2.VideoCapture(str(output / "clip.mp4"))
    assert overlay.get(cv2.CAP_PROP_FRAME_COUNT) == 20


def test_what_cannot_be_read_stops_nothing_else(weights, image, clip, tmp_path, capsys):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.png", "b.jpg", "d.png"):
        cv2.imwrite(str(folder / name), image)
    for file, target in ((folder / "b.jpg", "b.jpg"), (clip, "c.avi")):
        data = file.read_bytes()
        (folder / target).write_bytes(data[: len(data) // 2])
    arguments = [str(folder), "--output", str(output), "--weights", str(weights)]
    assert main(["predict", *arguments, "--backend", "torch", "--top-k", "3"]) == 1
    assert sorted(p.stem for p in output.iterdir()) == ["a", "a", "c", "c", "d", "d"]
    count = len((output / "c.jsonl").read_text().splitlines())
    assert cv2.VideoCapture(str(output / "c.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == count > 0
    printed = capsys.readouterr()
    assert "d.png: person" in printed.out and "c.avi" not in printed.out
    assert printed.err.splitlines()[-3:] == [
        f"yolact predict: {folder / 'b.jpg'} is cut short",
        f"yolact predict: {folder / 'c.avi'} ends after {count} of 20 frames",
        "yolact predict: 2 of 4 could not be read",
    ]


def test_what_cannot_be_written_ends_it(weights, image, tmp_path, capsys):
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), image)
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    arguments = [str(tmp_path), "--output", str(tmp_path / "out"), "--weights", str(weights)]
    assert main(["predict", *arguments, "--backend", "torch"]) == 1
    assert "a.png cannot be written: " in capsys.readouterr().err
    assert not (tmp_path / "out" / "b.json").exists()


def test_a_film_is_closed_when_something_fails(weights, clip, tmp_path):
    segmenter = Segmenter(weights=weights, backend="torch", top_k=3)
    images = []

    def fail_at_last(image):
        images.append(image)
        if len(images) == 5:
            raise MemoryError
        return segmenter(image)

    with pytest.raises(MemoryError) as caught:  # it keeps what the function had
        predict_video(fail_at_last, clip, tmp_path / "film", overlay=True)
    film = cv2.VideoCapture(str(tmp_path / "film.mp4"))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 4 and caught


def test_masks_are_written_one_by_one(monkeypatch):
    """All at their full size at once take gigabytes."""
    height, width = 23, 31
    corners = [[0, 0, 31, 23], [4, 0, 9, 23], [20, 7, 31, 23], [5, 6, 5, 9], [0, 3, 1, 4], [3] * 4]
    values = torch.from_numpy(np.random.default_rng(0).random((8, 23, 31), np.float32))
    values[6], values[7] = 0, 1
    rectangles = torch.tensor([*corners, [2, 2, 20, 20], [0, 0, 31, 23]])
    masks = SmallMasks(values, rectangles.float(), torch.tensor([[0, 0, 31, 23]]).expand(8, 4))
    found = Instances(
        boxes=rectangles.float(),
        scores=torch.ones(8),
        mask_scores=torch.ones(8),
        class_ids=torch.zeros(8, dtype=torch.int64),
        image_size=(height, width),
        class_names=("person",),
        stored_masks=masks,
    )
    wanted = found.masks.numpy()
    monkeypatch.delattr(Instances, "masks")
    entries = to_json(found)["instances"]
    for entry, mask in zip(entries, wanted, strict=True):
        flat = mask.T.ravel()
        assert entry["mask"]["size"] == [height, width]
        counts = entry["mask"]["counts"]
        assert sum(counts) == height * width and all(counts[1:])
        assert (np.repeat(np.arange(len(counts)) % 2 == 1, counts) == flat).all()
    assert entries[6]["mask"]["counts"] == [height * width]
    assert entries[7]["mask"]["counts"] == [0, height * width]


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing.png", "does not exist"), ("", "no image or video"), ("bad.png", "not an image")],
)
def test_bad_input_is_named(weights, tmp_path, capsys, name, message):
    (tmp_path / "in").mkdir()
    if name == "bad.png":
        (tmp_path / "in" / name).write_text("text")
    path = tmp_path / "in" / name
    output = tmp_path / "out"
    arguments = [str(path), "--output", str(output), "--weights", str(weights)]
    assert main(["predict", *arguments, "--backend", "torch"]) == 1
    error = capsys.readouterr().err
    assert message in error and str(path) in error


def test_unknown_commands_are_named(capsys):
    assert main(["paint"]) == 2
    assert "'paint'" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "predict" in capsys.readouterr().out
