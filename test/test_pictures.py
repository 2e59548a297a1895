"""Pictures are read and written, or there is an error that names the file."""

import cv2
import numpy as np
import pytest
from PIL import Image

from yolact_ros.cli import main
from yolact_ros.pictures import PictureError, read_picture, write_picture


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)


def test_a_picture_comes_back_from_a_folder_that_was_not_there(tmp_path, picture):
    path = tmp_path / "new" / "folder" / "a.png"
    write_picture(path, picture)
    assert (read_picture(path) == picture).all()


def test_the_orientation_is_followed_unless_pixels_are_wanted_as_stored(tmp_path, picture):
    path = tmp_path / "a.png"
    tags = Image.Exif()
    tags[0x0112] = 6  # to be turned to the right
    Image.fromarray(picture[..., ::-1]).save(path, exif=tags)
    assert (read_picture(path) == cv2.rotate(picture, cv2.ROTATE_90_CLOCKWISE)).all()
    assert (read_picture(path, as_stored=True) == picture).all()


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(PictureError, match=r"no\.png is missing"):
        read_picture(tmp_path / "no.png")


@pytest.mark.parametrize("name", ["a", "a.txt", "file/a.png", "folder.png"])
def test_what_cannot_be_written_is_named(tmp_path, picture, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(PictureError, match=f"{name} cannot be written"):
        write_picture(tmp_path / name, picture)


def test_explain_refuses_what_is_no_picture(tmp_path, capsys):
    assert main(["explain", str(tmp_path / "no.png")]) == 1
    assert "no.png is missing" in capsys.readouterr().err
