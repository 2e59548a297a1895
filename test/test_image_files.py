"""Images are read and written, or there is an error that names the file."""

import io
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from yolact_ros.cli import main
from yolact_ros.image_files import ImageFileError, UnreadableError, read_image, write_image


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)


def test_an_image_comes_back_from_a_folder_that_was_not_there(tmp_path, image):
    path = tmp_path / "new" / "folder" / "a.png"
    write_image(path, image)
    assert (read_image(path) == image).all()


def test_the_orientation_is_followed_unless_pixels_are_wanted_as_stored(tmp_path, image):
    path = tmp_path / "a.png"
    tags = Image.Exif()
    tags[0x0112] = 6  # to be turned to the right
    Image.fromarray(image[..., ::-1]).save(path, exif=tags)
    assert (read_image(path) == cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE)).all()
    assert (read_image(path, as_stored=True) == image).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_of_a_jpeg(tmp_path, orientation):
    rows, columns = np.mgrid[:64, :48]
    stored = np.stack([3 * rows, 5 * columns, rows + columns], axis=2).astype(np.uint8)
    path = tmp_path / "a.jpg"
    tags = Image.Exif()
    tags[0x0112] = orientation
    Image.fromarray(stored).save(path, exif=tags, quality=95)
    for as_stored, flag in ((False, 0), (True, cv2.IMREAD_IGNORE_ORIENTATION)):
        wanted = cv2.imread(str(path), cv2.IMREAD_COLOR | flag)
        assert (read_image(path, as_stored) == wanted).all()


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text"])
def test_what_cannot_be_read_is_named(tmp_path, kind):
    path = tmp_path / "no.png"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_text("" if kind == "empty" else "text")
    reason = {"missing": "is missing", "folder": "cannot be read: .*directory"}
    with pytest.raises(UnreadableError, match=rf"no\.png {reason.get(kind, 'is not an image')}"):
        read_image(path)


def encoded(image, kind="JPEG", **options):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def with_thumbnail(data):
    """A JPEG with a whole one in a segment in front, as cameras store thumbnails."""
    segment = b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data
    return data[:2] + segment + data[2:]


@pytest.fixture
def files(image):
    jpeg = encoded(image)
    return {
        "JPEG": jpeg,
        "progressive": encoded(image, progressive=True),
        "with a thumbnail": with_thumbnail(jpeg),
        "PNG": encoded(image, "PNG"),
    }


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "with a thumbnail", "PNG"])
def test_images_cut_short_are_refused(tmp_path, files, kind):
    path, data = tmp_path / "a", files[kind]
    for length in (len(data) // 3, len(data) * 2 // 3, len(data) - 12, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(UnreadableError, match=r"/a is cut short"):
            read_image(path)
        path.write_bytes(data[:length] + bytes(100))
        with pytest.raises(UnreadableError, match=r"/a is cut short"):
            read_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "with a thumbnail", "PNG"])
def test_bytes_behind_a_whole_image_do_not_matter(tmp_path, files, kind):
    """Cameras pad, and put a film or more images behind the first."""
    path = tmp_path / "a"
    path.write_bytes(files[kind])
    wanted = read_image(path)
    second = files["JPEG"][: len(files["JPEG"]) // 2]
    for more in (bytes(100), b"\xff" * 7, b"\xff\xda and a film", second):
        path.write_bytes(files[kind] + more)
        assert (read_image(path) == wanted).all()


@pytest.mark.parametrize("name", ["a", "a.txt", "file/a.png", "folder.png"])
def test_what_cannot_be_written_is_named(tmp_path, image, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageFileError, match=f"{name} cannot be written"):
        write_image(tmp_path / name, image)


def test_names_that_are_not_utf8(tmp_path, image):
    path = tmp_path / os.fsdecode(b"bad\xff.png")
    write_image(path, image)
    np.testing.assert_array_equal(read_image(path), image)


def test_explain_refuses_what_is_no_image(tmp_path, capsys):
    assert main(["explain", str(tmp_path / "no.png")]) == 1
    assert "no.png is missing" in capsys.readouterr().err
