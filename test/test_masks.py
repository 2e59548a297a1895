"""The mask encodings: every one decodes to the same mask, and bytes that break them are refused."""

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest

from yolact_ros import masks


@dataclass
class Mask:
    """The fields of yolact_ros/msg/Mask, for a reader without ROS."""

    height: int
    width: int
    encoding: str
    data: bytes
    x_offset: int = 0
    y_offset: int = 0


def regions_of(samples):
    """Flat pixels, rectangles and offsets of a list of masks."""
    rectangles = np.array([[5, 7, 5 + p.shape[1], 7 + p.shape[0]] for p in samples])
    offsets = np.cumsum([0] + [p.size for p in samples])
    return rectangles.reshape(-1, 4), np.concatenate([p.reshape(-1) for p in samples]), offsets


def samples():
    rng = np.random.default_rng(0)
    blob = np.zeros((40, 61), bool)
    blob[5:30, 8:50] = True
    return [
        np.zeros((3, 5), bool),
        np.ones((3, 5), bool),
        np.ones((1, 1), bool),
        np.zeros((1, 1), bool),
        np.zeros((0, 0), bool),
        np.zeros((4, 0), bool),
        np.zeros((0, 4), bool),
        blob,
        ~blob,
        *(rng.random((h, w)) < 0.5 for h, w in [(7, 8), (8, 7), (1, 33), (33, 1), (64, 64)]),
    ]


@pytest.mark.parametrize("encoding", masks.ENCODINGS)
def test_all_regions_of_an_image_decode_to_the_same_masks(encoding):
    expected = samples()
    encoded = masks.encode_regions(*regions_of(expected), encoding)
    assert len(encoded) == len(expected)
    for pixels, data in zip(expected, encoded, strict=True):
        assert masks.encode(pixels, encoding) == data
        decoded = masks.decode(Mask(*pixels.shape, encoding, data))
        assert decoded.dtype == np.bool_
        np.testing.assert_array_equal(decoded, pixels)


def test_no_regions_give_no_bytes():
    nothing = np.zeros((0, 4), int), np.zeros(0, bool), np.zeros(1, int)
    assert [masks.encode_regions(*nothing, encoding) for encoding in masks.ENCODINGS] == [[]] * 3


def test_bytes_are_those_that_the_message_defines():
    pixels = np.array([[0, 1, 1], [1, 0, 0]], bool)
    assert masks.encode(pixels, "mono8") == bytes([0, 255, 255, 255, 0, 0])
    assert masks.encode(pixels, "bits") == bytes([0b01100000, 0b10000000])
    assert masks.encode(pixels, "rle") == bytes([1, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0])
    # A mask that starts with a 1 has an empty run of 0s in front; nine columns take two bytes.
    starts_with_one = np.array([[1, 0, 0, 0, 0, 0, 0, 0, 1]], bool)
    assert masks.encode(starts_with_one, "rle") == np.array([0, 1, 7, 1], "<u4").tobytes()
    assert masks.encode(starts_with_one, "bits") == bytes([0b10000000, 0b10000000])


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (Mask(2, 3, "mono8", bytes(5)), "has 5 bytes; it must have 6"),
        (Mask(2, 3, "mono8", bytes([0, 1, 0, 0, 0, 0])), "neither 0 nor 255"),
        (Mask(2, 9, "bits", bytes(3)), "has 3 bytes; it must have 4"),
        (Mask(1, 3, "bits", bytes([0b00010000])), "unused bits"),
        (Mask(2, 3, "rle", bytes(5)), "multiple of 4"),
        (Mask(2, 3, "rle", np.array([1, 3], "<u4").tobytes()), "add up to 4; .* add up to 6"),
        (Mask(2, 3, "rle", b""), "add up to 0"),
        (Mask(2, 3, "rle", np.array([2**32 - 1, 7], "<u4").tobytes()), "add up to 4294967302"),
        (Mask(65535, 65537, "rle", np.array([2**32 - 1], "<u4").tobytes()), "at most"),
        (Mask(2, 3, "jpeg", bytes(6)), "'jpeg'.*mono8, bits, rle"),
        (Mask(2, 3, "", b""), "unknown mask encoding"),
    ],
)
def test_malformed_masks_are_refused(mask, reason):
    with pytest.raises(ValueError, match=reason):
        masks.decode(mask)


def test_a_model_that_gives_boxes_only_has_empty_masks():
    assert masks.decode(Mask(0, 0, "", b"")).shape == (0, 0)


def test_unknown_encodings_and_regions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"'png'.*mono8, bits, rle"):
        masks.encode(np.ones((2, 2), bool), "png")
    with pytest.raises(ValueError, match="do not fit"):
        masks.encode_regions(np.array([[0, 0, 2, 2]]), np.ones(5, bool), np.array([0, 5]), "rle")


def test_paste_puts_the_mask_into_its_image():
    pixels = np.array([[1, 0], [1, 1]], bool)
    mask = Mask(2, 2, "rle", masks.encode(pixels, "rle"), x_offset=3, y_offset=1)
    image = masks.paste(mask, 4, 5)
    assert image.shape == (4, 5)
    np.testing.assert_array_equal(np.argwhere(image), [[1, 3], [2, 3], [2, 4]])
    with pytest.raises(ValueError, match="leaves the image of 4 x 4"):
        masks.paste(mask, 4, 4)
    at_the_corner = Mask(2, 2, "rle", masks.encode(pixels, "rle"), x_offset=0, y_offset=0)
    np.testing.assert_array_equal(masks.paste(at_the_corner, 2, 2), pixels)


def test_reading_masks_needs_neither_torch_nor_ros():
    program = (
        "import sys, yolact_ros.masks; "
        "assert not {'torch', 'rclpy', 'cv2'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
