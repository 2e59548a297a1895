"""Messages become the image that was sent, for every encoding; malformed ones are refused."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest

from yolact_ros.node import images
from yolact_ros.node.images import ImageError, bgr_of, bgr_of_compressed


@dataclass
class Image:
    height: int
    width: int
    encoding: str
    step: int
    data: bytes
    is_bigendian: int = 0


@dataclass
class CompressedImage:
    format: str
    data: bytes


def smooth_image(height, width):
    """Smooth colours, different in every corner and channel, so that a mix-up is seen."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    y, x = y / max(height - 1, 1), x / max(width - 1, 1)
    planes = 40 + 170 * x, 60 + 150 * y, 200 - 80 * x - 70 * y
    return np.stack(planes, axis=-1).round().astype(np.uint8)


def grey(bgr):
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)


def wide(values):
    """8-bit values as the 16-bit values of the same brightness."""
    return values.astype(np.uint16) * 257


def message(encoding, rows, height, width, padding=0):
    """An Image of the given rows [rows, ...], each followed by `padding` bytes."""
    rows = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=255)
    return Image(height, width, encoding, padded.shape[1], padded.tobytes())


def mosaic(bgr, pattern):
    """What a sensor sees behind colour filters; `pattern` names them for the first 2 x 2 pixels."""
    sensor = np.empty(bgr.shape[:2], bgr.dtype)
    for i, colour in enumerate(pattern):
        row, column = divmod(i, 2)
        sensor[row::2, column::2] = bgr[row::2, column::2, "bgr".index(colour)]
    return sensor


def yuv(bgr):
    """BT.601 video range by its definition: float (y, u, v) [H, W, 3]."""
    b, g, r = np.moveaxis(bgr.astype(float), -1, 0)
    y = 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255
    u = 128 + (-37.797 * r - 74.203 * g + 112.0 * b) / 255
    v = 128 + (112.0 * r - 93.786 * g - 18.214 * b) / 255
    return np.stack((y, u, v), axis=-1)


def packed_422(bgr, order):
    """[H, W, 2]; the colour of each pair of pixels is that of their mean."""
    y, u, v = np.moveaxis(yuv(bgr), -1, 0)
    u, v = (u[:, ::2] + u[:, 1::2]) / 2, (v[:, ::2] + v[:, 1::2]) / 2
    values = {"y0": y[:, ::2], "y1": y[:, 1::2], "u": u, "v": v}
    groups = np.stack([values[name] for name in order], axis=-1)
    return groups.round().astype(np.uint8)


def planes_420(bgr, order):
    """[H * 3 / 2, W]: brightness, then pairs of colour of 2 x 2 pixels."""
    y, u, v = np.moveaxis(yuv(bgr), -1, 0)
    height, width = y.shape
    small = {
        name: plane.reshape(height // 2, 2, width // 2, 2).mean((1, 3))
        for name, plane in (("u", u), ("v", v))
    }
    pairs = np.stack([small[name] for name in order], axis=-1).reshape(height // 2, width)
    return np.concatenate((y, pairs)).round().astype(np.uint8)


def planes_444(bgr):
    y, u, v = np.moveaxis(yuv(bgr), -1, 0)
    pairs = np.stack((u, v), axis=-1).reshape(2 * len(y), -1)
    return np.concatenate((y, pairs)).round().astype(np.uint8)


ALPHA = np.uint8(7)


def with_alpha(colours):
    return np.dstack((colours, np.full(colours.shape[:2], 7, colours.dtype)))


PLAIN = {
    "bgr8": lambda bgr: bgr,
    "8UC3": lambda bgr: bgr,
    "rgb8": lambda bgr: bgr[..., ::-1],
    "bgra8": with_alpha,
    "8UC4": with_alpha,
    "rgba8": lambda bgr: with_alpha(bgr[..., ::-1]),
    "bgr16": wide,
    "16UC3": wide,
    "rgb16": lambda bgr: wide(bgr[..., ::-1]),
    "bgra16": lambda bgr: with_alpha(wide(bgr)),
    "16UC4": lambda bgr: with_alpha(wide(bgr)),
    "rgba16": lambda bgr: with_alpha(wide(bgr[..., ::-1])),
}
GREY = {
    "mono8": grey,
    "8UC1": grey,
    "mono16": lambda bgr: wide(grey(bgr)),
    "16UC1": lambda bgr: wide(grey(bgr)),
}
BAYER = {
    f"bayer_{pattern}{bits}": (
        lambda bgr, p=pattern, b=bits: mosaic(bgr if b == 8 else wide(bgr), p)
    )
    for pattern in ("rggb", "bggr", "gbrg", "grbg")
    for bits in (8, 16)
}
SUBSAMPLED = {
    "yuv422": lambda bgr: packed_422(bgr, ("u", "y0", "v", "y1")),
    "uyvy": lambda bgr: packed_422(bgr, ("u", "y0", "v", "y1")),
    "yuv422_yuy2": lambda bgr: packed_422(bgr, ("y0", "u", "y1", "v")),
    "yuyv": lambda bgr: packed_422(bgr, ("y0", "u", "y1", "v")),
    "nv12": lambda bgr: planes_420(bgr, ("u", "v")),
    "nv21": lambda bgr: planes_420(bgr, ("v", "u")),
}


def test_every_encoding_of_the_table_is_tested_here():
    assert {*PLAIN, *GREY, *BAYER, *SUBSAMPLED, "nv24"} == set(images.ENCODINGS)


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (48, 64)])
@pytest.mark.parametrize("encoding", PLAIN)
def test_colour_comes_through_exactly(encoding, size, padding):
    bgr = smooth_image(*size)
    sent = message(encoding, PLAIN[encoding](bgr), *size, padding)
    images.check(sent)
    result = bgr_of(sent)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, bgr)


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (48, 64)])
@pytest.mark.parametrize("encoding", GREY)
def test_grey_comes_through_exactly_in_all_channels(encoding, size, padding):
    bgr = smooth_image(*size)
    result = bgr_of(message(encoding, GREY[encoding](bgr), *size, padding))
    np.testing.assert_array_equal(result, np.repeat(grey(bgr)[..., None], 3, axis=-1))


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("size", [(47, 65), (48, 64)])
@pytest.mark.parametrize("encoding", BAYER)
def test_bayer_mosaics_give_their_colours_back(encoding, size, padding):
    bgr = smooth_image(*size)
    result = bgr_of(message(encoding, BAYER[encoding](bgr), *size, padding))
    # A wrong pattern swaps red and blue, or mixes green in: differences of up to 160.
    inner = np.s_[2:-2, 2:-2]
    difference = np.abs(result[inner].astype(int) - bgr[inner])
    assert difference.max() <= 4


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", SUBSAMPLED)
def test_video_encodings_give_their_colours_back(encoding, padding):
    bgr = smooth_image(48, 64)
    result = bgr_of(message(encoding, SUBSAMPLED[encoding](bgr), 48, 64, padding))
    assert result.shape == bgr.shape
    assert np.abs(result.astype(int) - bgr).max() <= 8


@pytest.mark.parametrize("encoding", SUBSAMPLED)
def test_video_encodings_of_odd_size_have_rows_of_whole_pairs(encoding):
    bgr = smooth_image(48, 64)
    rows = SUBSAMPLED[encoding](bgr)
    whole = message(encoding, rows, 48, 64)
    odd = message(encoding, rows, 48, 63)
    np.testing.assert_array_equal(bgr_of(odd), bgr_of(whole)[:, :63])
    if encoding in ("nv12", "nv21"):
        odd = message(encoding, np.delete(rows, 47, axis=0), 47, 63)
        np.testing.assert_array_equal(bgr_of(odd), bgr_of(whole)[:47, :63])


def test_nv24_has_a_colour_for_every_pixel():
    bgr = np.random.default_rng(0).integers(30, 220, (5, 7, 3), np.uint8)
    result = bgr_of(message("nv24", planes_444(bgr), 5, 7))
    assert np.abs(result.astype(int) - bgr).max() <= 3


@pytest.mark.parametrize("encoding", ["mono16", "bgr16", "rgba16", "bayer_rggb16", "16UC1"])
def test_big_endian_values_are_read_as_such(encoding):
    bgr = smooth_image(12, 10)
    values = {**PLAIN, **GREY, **BAYER}[encoding](bgr)
    odd_values = values + 1  # low and high byte differ
    little = message(encoding, odd_values, 12, 10)
    big = replace(message(encoding, odd_values.byteswap(), 12, 10), is_bigendian=1)
    np.testing.assert_array_equal(bgr_of(big), bgr_of(little))
    np.testing.assert_allclose(bgr_of(big).astype(int), bgr_of(message(encoding, values, 12, 10)))


def test_big_endian_flag_does_not_touch_single_bytes():
    bgr = smooth_image(6, 5)
    sent = replace(message("bgr8", bgr, 6, 5), is_bigendian=1)
    np.testing.assert_array_equal(bgr_of(sent), bgr)


@pytest.mark.parametrize("padding", [0, 6])
def test_bgr8_is_a_view_of_the_message(padding):
    sent = message("bgr8", smooth_image(6, 5), 6, 5, padding)
    sent.data = bytearray(sent.data)
    result = bgr_of(sent)
    sent.data[0] ^= 255
    assert result[0, 0, 0] == sent.data[0]


BGR = message("bgr8", smooth_image(6, 5), 6, 5)


@pytest.mark.parametrize(
    ("malformed", "reason", "text"),
    [
        (replace(BGR, step=14), "step", "step of 14 bytes.* needs 15 or more"),
        (replace(BGR, step=0), "step", "step of 0"),
        (replace(BGR, data=BGR.data[:-1]), "data", "89 bytes of data; .* need 90"),
        (replace(BGR, data=BGR.data + b"x"), "data", "91 bytes of data"),
        (replace(BGR, data=b""), "data", "0 bytes of data"),
        (replace(BGR, height=7), "data", "90 bytes of data; .* need 105"),
        (replace(BGR, height=0), "size", "5 x 0 pixels"),
        (replace(BGR, width=0), "size", "0 x 6 pixels"),
        (replace(BGR, width=4_000_000_000, step=0), "size", "allowed are 1 to"),
        (replace(BGR, encoding="bgr9"), "encoding", "unknown encoding 'bgr9'; known are mono8"),
        (replace(BGR, encoding=""), "encoding", "unknown encoding ''"),
        (replace(BGR, encoding="32FC1"), "encoding", "unknown encoding '32FC1'"),
        (message("mono16", np.zeros((4, 11), np.uint8), 4, 5), "step", "cuts a 16-bit value"),
        (message("yuyv", np.zeros((4, 10), np.uint8), 4, 5), "step", "needs 12 or more"),
        (message("nv12", np.zeros((4, 4), np.uint8), 4, 4), "data", "16 bytes of data; .* need 24"),
        (message("bayer_rggb8", np.zeros((2, 2), np.uint8), 2, 2), "size", "at least 3 x 3"),
    ],
)
def test_malformed_images_are_refused(malformed, reason, text):
    with pytest.raises(ImageError, match=text) as caught:
        images.check(malformed)
    assert caught.value.reason == reason
    with pytest.raises(ImageError, match=text):
        bgr_of(malformed)


def encoded(suffix, pixels, *options):
    return cv2.imencode(suffix, pixels, options)[1].tobytes()


@pytest.mark.parametrize(
    ("kind", "suffix", "tolerance"),
    [
        ("jpeg", ".jpg", 6),
        ("bgr8; jpeg compressed bgr8", ".jpg", 6),
        ("rgb8; jpeg compressed bgr8", ".jpg", 6),
        ("png", ".png", 0),
        ("bgr8; png compressed bgr8", ".png", 0),
        ("", ".png", 0),
    ],
)
def test_compressed_images(kind, suffix, tolerance):
    bgr = smooth_image(49, 63)
    result = bgr_of_compressed(CompressedImage(kind, encoded(suffix, bgr)))
    assert result.shape == bgr.shape
    assert np.abs(result.astype(int) - bgr).max() <= tolerance


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("encoding", BAYER)
def test_compressed_mosaics_give_their_colours_back(encoding, suffix):
    """As compressed_image_transport sends what a camera gives."""
    bgr = smooth_image(48, 64)
    values = BAYER[encoding](bgr)
    if suffix == ".jpg" and values.dtype == np.uint16:
        values = (values / 257).astype(np.uint8)  # which is what it does
    sent = CompressedImage(f"{encoding}; {suffix[1:]} compressed ", encoded(suffix, values))
    difference = np.abs(bgr_of_compressed(sent)[2:-2, 2:-2].astype(int) - bgr[2:-2, 2:-2])
    assert difference.mean() <= (4 if suffix == ".png" else 12)
    # What was demosaiced before it was compressed stays as it is.
    sent = CompressedImage(f"{encoding}; png compressed bgr8", encoded(".png", bgr))
    np.testing.assert_array_equal(bgr_of_compressed(sent), bgr)


@pytest.mark.parametrize(
    "encoding, size, reason, text",
    [
        ("bayer_rggb8", (2, 9), "size", "bayer_rggb image of 9 x 2 pixels; it needs at least 3 x"),
        ("bayer_rgbw8", (9, 9), "encoding", "unknown Bayer pattern 'bayer_rgbw'"),
    ],
)
def test_compressed_mosaics_that_give_no_colours(encoding, size, reason, text):
    data = encoded(".png", np.zeros(size, np.uint8))
    with pytest.raises(ImageError, match=text) as error:
        bgr_of_compressed(CompressedImage(f"{encoding}; png compressed ", data))
    assert error.value.reason == reason


def test_compressed_grey_and_16_bit_and_transparent_images():
    bgr = smooth_image(20, 30)
    for pixels, expected in (
        (grey(bgr), np.repeat(grey(bgr)[..., None], 3, axis=-1)),
        (wide(bgr), bgr),
        (with_alpha(bgr), bgr),
    ):
        result = bgr_of_compressed(CompressedImage("png", encoded(".png", pixels)))
        assert np.abs(result.astype(int) - expected).max() <= 1


def test_bytes_after_the_end_of_a_jpeg_do_no_harm():
    data = encoded(".jpg", smooth_image(20, 30))
    result = bgr_of_compressed(CompressedImage("jpeg", data + bytes(100)))
    assert result.shape == (20, 30, 3)


def test_orientation_tags_are_not_followed():
    data = encoded(".jpg", smooth_image(20, 30))
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    exif = b"\xff\xe1" + (len(tiff) + 8).to_bytes(2, "big") + b"Exif\0\0" + tiff
    result = bgr_of_compressed(CompressedImage("jpeg", data[:2] + exif + data[2:]))
    assert result.shape == (20, 30, 3)


@pytest.mark.parametrize("progressive", [0, 1])
def test_a_jpeg_that_claims_to_be_enormous_is_not_decoded(progressive):
    """Its frame header is found behind fill bytes and the tables that some cameras put first."""
    data = encoded(".jpg", smooth_image(20, 30), cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    table = data.index(b"\xff\xc4")
    end = table + 2 + int.from_bytes(data[table + 2 : table + 4], "big")
    size = data.index(b"\xff" + bytes([0xC0 + 2 * progressive])) + 5
    assert data[size : size + 4] == b"\0\x14\0\x1e"
    enormous = data[:size] + (40000).to_bytes(2, "big") + (50000).to_bytes(2, "big")
    data = data[:2] + b"\xff" * 3 + data[table:end] + enormous[2:] + data[size + 4 :]
    with pytest.raises(ImageError, match="an image of 50000 x 40000 pixels") as caught:
        bgr_of_compressed(CompressedImage("jpeg", data))
    assert caught.value.reason == "size"


JPEG = encoded(".jpg", smooth_image(48, 64))
PNG = encoded(".png", smooth_image(48, 64))


@pytest.mark.parametrize(
    ("data", "reason", "text"),
    [
        (b"", "encoding", "neither JPEG nor PNG"),
        (b"hello", "encoding", "format 'jpeg'"),
        (JPEG[:-200], "data", "cut short or broken"),
        (JPEG[:20], "data", "cut short or broken"),
        (b"\xff\xd8\xff\xd9", "data", "cut short or broken"),
        (PNG[: len(PNG) // 2], "data", "cut short or broken"),
        (PNG[:10], "data", "cut short or broken"),
        (PNG[:16] + b"\0\1\0\0" * 2 + PNG[24:], "size", "65536 x 65536"),
        (PNG[:40] + b"\0" * 40 + PNG[80:], "data", "cannot be decoded"),
    ],
)
def test_malformed_compressed_images_are_refused(data, reason, text):
    with pytest.raises(ImageError, match=text) as caught:
        bgr_of_compressed(CompressedImage("jpeg", data))
    assert caught.value.reason == reason


@pytest.mark.parametrize("data", [JPEG, PNG], ids=["JPEG", "PNG"])
def test_bytes_behind_a_whole_compressed_image_do_not_matter(data):
    wanted = bgr_of_compressed(CompressedImage("", data))
    for more in (bytes(100), b"\xff\xda" + JPEG[: len(JPEG) // 2]):
        np.testing.assert_array_equal(bgr_of_compressed(CompressedImage("", data + more)), wanted)


def test_random_bytes_never_do_more_than_raise():
    rng = np.random.default_rng(0)
    for source in (JPEG, PNG):
        for _ in range(200):
            data = bytearray(source)
            for at in rng.integers(2, len(data), 5):
                data[at] = rng.integers(256)
            try:
                result = bgr_of_compressed(CompressedImage("jpeg", bytes(data)))
            except ImageError:
                continue
            assert result.dtype == np.uint8 and result.ndim == 3
