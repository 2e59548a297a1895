"""What commands write has names of its own."""

from pathlib import Path

import pytest

from yolact_ros.cli.files import choose_targets, find_files, find_images, short_names


def test_folders_have_images_and_videos(tmp_path):
    a, b, c = (tmp_path / name for name in ("a.JPG", "b.mp4", "c.txt"))
    for path in (b, c):
        path.touch()
    assert find_files(tmp_path) == [b] and find_images(c) == [c]
    with pytest.raises(ValueError, match=f"folder {tmp_path} has no image in it"):
        find_images(tmp_path)
    a.touch()
    assert find_files(tmp_path) == [a, b] and find_images(tmp_path) == [a]


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    names = ["1.png", "frame1.png", "frame2.png", "frame10.png", "title.png"]
    for name in reversed(names):
        (tmp_path / name).touch()
    assert [path.name for path in find_images(tmp_path)] == names


def test_names_are_as_short_as_can_be():
    assert short_names([Path("x/val.json")]) == ["val"]
    assert short_names([Path("a/train.json"), Path("a/val.json")]) == ["train", "val"]
    roboflow = [Path("train/_annotations.coco.json"), Path("valid/_annotations.coco.json")]
    assert short_names(roboflow) == ["train-_annotations.coco", "valid-_annotations.coco"]
    assert short_names([Path("x/ann/val.json"), Path("y/ann/val.json")]) == [
        "x-ann-val",
        "y-ann-val",
    ]
    assert short_names([Path("/data/val.json"), Path("/mnt/data/val.json")]) == [
        "data-val",
        "mnt-data-val",
    ]
    twice = [Path("a.json"), Path("x/b.json"), Path("./a.json")]
    assert short_names(twice) == ["a-1", "b", "a-2"]


def test_results_overwrite_nothing(tmp_path):
    files = [tmp_path / "a.b.jpg", tmp_path / "c.png"]
    out = tmp_path / "out"
    assert choose_targets(files, out) == {files[0]: out / "a.b", files[1]: out / "c"}
    with pytest.raises(ValueError, match=r"a\.b\.jpg and .*a\.b\.png would both"):
        choose_targets([*files, tmp_path / "a.b.png"], out)
    thumbnail = [tmp_path / "clip.jpg", tmp_path / "clip.mp4"]
    assert set(choose_targets(thumbnail, out).values()) == {out / "clip"}
    with pytest.raises(ValueError, match=r"is the folder of .*a\.b\.jpg itself"):
        choose_targets(files, tmp_path)


def test_links_are_not_written_through(tmp_path):
    store, links = tmp_path / "store", tmp_path / "links"
    store.mkdir(), links.mkdir()
    (store / "a.png").touch()
    link = links / "a.png"
    link.symlink_to(store / "a.png")
    for folder in (links, store):
        with pytest.raises(ValueError, match=r"is the folder of .*a\.png itself"):
            choose_targets([link], folder)
    assert choose_targets([link], tmp_path) == {link: tmp_path / "a"}
