"""Each Triton kernel against its twin in plain PyTorch.

On a CUDA device, or under Triton's interpreter on the CPU: `test_interpreter.py` does that.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d

from yolact_ros import kernels
from yolact_ros.detection import DetectionSettings, detect
from yolact_ros.detection.detections import detect_plain
from yolact_ros.detection.masks import assemble, crop, crop_rectangles, cropped_masks
from yolact_ros.detection.regions import (
    PackedMasks,
    SmallMasks,
    pack,
    packed_sizes,
    packs_by_kernel,
    pixel_rectangles,
)
from yolact_ros.engine.preprocess import normalise, preprocess, resize
from yolact_ros.network import Predictions, config_of

ON_CPU = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [] if ON_CPU else [pytest.mark.cuda]
HALF_ERROR = 1e-3


@pytest.fixture(autouse=True)
def inference():
    with torch.no_grad():
        yield


@pytest.fixture
def device():
    if ON_CPU:
        pytest.importorskip("triton")
        return torch.device("cpu")
    if not kernels.usable(torch.zeros(1, device="cuda"), "pack"):
        pytest.skip("needs Triton")
    return torch.device("cuda")


def test_kernels_keep_out_of_training_and_tracing(device):
    x = torch.zeros(1, device=device)
    assert kernels.usable(x, "pack")
    with torch.enable_grad():
        assert not kernels.usable(x, "pack")
    assert not kernels.usable(x.to("meta"), "pack")
    used = []

    class Recorder(torch.nn.Module):
        def forward(self, t: torch.Tensor) -> torch.Tensor:
            used.append(kernels.usable(t, "pack"))
            return t + 1

    torch.export.export(Recorder(), (x,), strict=False)
    assert used == [False]


def test_where_a_kernel_fails_its_twin_is_used_and_one_warning_says_why(device):
    # Triton knows no complex numbers.
    coefficients = torch.randn(1, 3, 4, dtype=torch.complex64, device=device)
    prototypes = torch.randn(1, 4, 6, 5, dtype=torch.complex64, device=device)
    cells = torch.tensor((1, 1, 4, 4), device=device).expand(1, 3, 4)
    with pytest.warns(
        RuntimeWarning, match="kernel assemble is not used for complex64.*: "
    ) as told:
        for _ in range(2):
            found = cropped_masks(coefficients, prototypes, cells)
    assert len(told) == 1
    assert torch.equal(found, crop(assemble(coefficients, prototypes), cells))
    assert kernels.usable(coefficients, "assemble", torch.float32)


def test_a_kernel_may_fail_at_any_call(device, monkeypatch):
    """Triton compiles for every kind of arguments anew, also after others have worked."""
    from triton.runtime.errors import OutOfResources

    from yolact_ros.kernels import masks

    monkeypatch.setattr(kernels, "_refused", set())
    coefficients = torch.randn(1, 3, 4, device=device)
    prototypes = torch.randn(1, 4, 6, 5, device=device)
    cells = torch.tensor((1, 1, 4, 4), device=device).expand(1, 3, 4)
    expected = crop(assemble(coefficients, prototypes), cells)
    torch.testing.assert_close(cropped_masks(coefficients, prototypes, cells), expected)
    errors = iter(
        (RuntimeError("Triton Error [CUDA]: out of memory"), OutOfResources(9, 8, "shared memory"))
    )

    def fail(*args: object) -> torch.Tensor:
        raise next(errors)

    monkeypatch.setattr(masks, "assemble", fail)
    with pytest.raises(RuntimeError, match="out of memory"):  # which says nothing of the kernel
        cropped_masks(coefficients, prototypes, cells)
    assert kernels.usable(coefficients, "assemble")
    with pytest.warns(
        RuntimeWarning, match="kernel assemble is not used .*: OutOfResources"
    ) as told:
        for _ in range(2):
            assert torch.equal(cropped_masks(coefficients, prototypes, cells), expected)
    assert len(told) == 1 and kernels.usable(coefficients, "pack")
    # Nothing that was written before it failed is left.
    monkeypatch.setattr(masks, "pack", lambda *args: (args[-1].fill_(0x5A), fail()))
    errors = iter((OutOfResources(9, 8, "shared memory"),))
    out = torch.empty(3, dtype=torch.uint8, device=device)
    one = torch.ones(1, 4, 4, device=device)
    extents = torch.tensor(((0.0, 0, 8, 2),), device=device)
    with pytest.warns(RuntimeWarning, match="kernel pack"):
        pack(one, extents, extents.long(), torch.tensor((2,), device=device), out)
    assert out.tolist() == [255, 255, 0]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    "name, size",
    [("yolact_resnet50", (17, 23)), ("yolact_darknet53", (64, 64)), ("yolact_base", (71, 130))],
)
def test_preprocessing(device, name, size):
    config = config_of(name).replace(image_size=64)
    images = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8, device=device)
    expected = normalise(resize(images, 64), config)
    for dtype, error in ((torch.float32, 1e-6), (torch.float16, HALF_ERROR)):
        found = preprocess(images, config, dtype)
        assert torch.equal(preprocess(list(images), config, dtype), found)
        assert found.dtype == dtype and found.shape == (2, 3, 64, 64)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert relative_error(found, expected) < error


def test_preprocessing_reads_a_window_in_place(device):
    config = config_of("yolact_resnet50").replace(image_size=64)
    image = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8, device=device)
    window = image[5:35, 10:50]
    assert torch.equal(preprocess([window], config), preprocess([window.clone()], config))


@pytest.mark.parametrize(
    "stride, modulated, splits",
    [(1, True, 1), (1, False, 3), (1, True, 9), (2, False, 1), (2, True, 3), (2, False, 9)],
)
def test_deformable_convolution(device, stride, modulated, splits):
    from yolact_ros.kernels import deformable

    torch.manual_seed(splits)
    # Neither pixels nor channels are multiples of the tiles; some samples leave the image.
    x = torch.randn(2, 20, 4, 5)
    learned = torch.randn(2, 27 if modulated else 18, *(-(-n // stride) for n in (4, 5))) * 2
    weight, bias = torch.randn(18, 20, 3, 3) / 13, torch.randn(18)
    learned[0, 0, 0, 0] = 6e4  # a sample far away, as overflows of half precision are
    tiles = deformable.Tiles(pixels=16, outputs=16, inputs=16, splits=splits)
    for dtype, error in ((torch.float32, 1e-5), (torch.float16, HALF_ERROR)):
        tensors = [tensor.to(device, dtype) for tensor in (x, learned, weight, bias)]
        found = deformable.deform_conv2d(*tensors, stride=stride, modulated=modulated, tiles=tiles)
        offsets, factors = tensors[1][:, :18].float(), tensors[1][:, 18:].float().sigmoid()
        expected = deform_conv2d(
            tensors[0].float(),
            offsets,
            tensors[2].float(),
            tensors[3].float(),
            stride=stride,
            padding=1,
            mask=factors if modulated else None,
        )
        assert found.shape == expected.shape and found.dtype == dtype
        assert relative_error(found, expected) < error


def test_deformable_convolution_with_chosen_tiles(device):
    from yolact_ros.kernels import deformable

    torch.manual_seed(0)
    inputs, outputs = 64, 40
    x, learned = torch.randn(1, inputs, 9, 9), torch.randn(1, 27, 9, 9)
    weight, bias = torch.randn(outputs, inputs, 3, 3) / 24, torch.randn(outputs)
    tensors = [tensor.to(device) for tensor in (x, learned, weight, bias)]
    offsets, factors = learned[:, :18], learned[:, 18:].sigmoid()
    expected = deform_conv2d(x, offsets, weight, bias, padding=1, mask=factors)
    assert relative_error(deformable.deform_conv2d(*tensors), expected) < 1e-5


@pytest.mark.parametrize("count, k", [(5, 8), (40, 32), (16, 33)])
def test_assembly(device, count, k):
    from yolact_ros.kernels import masks

    torch.manual_seed(count)
    coefficients = torch.randn(2, count, k, device=device).tanh()
    prototypes = torch.randn(2, k, 13, 11, device=device).relu()
    cells = crop_rectangles(torch.rand(2, count, 4, device=device) * 1.4 - 0.2, 13, 11)
    for dtype, error in ((torch.float32, 1e-5), (torch.float16, HALF_ERROR)):
        a, b = coefficients.to(dtype), prototypes.to(dtype)
        expected = crop(assemble(a.float(), b.float()), cells)
        for order in (torch.contiguous_format, torch.channels_last):
            found = masks.assemble(a, b.contiguous(memory_format=order), cells)
            assert found.dtype == dtype and relative_error(found, expected) < error
            assert torch.equal(found == 0, crop(torch.ones_like(found), cells) == 0)


def small_masks(count: int, size: tuple[int, int], of_boxes: bool) -> SmallMasks:
    """Smooth masks in random boxes, some of them partly or wholly outside of the image."""
    height, width = size
    values = torch.rand(count, 1, 5, 4)
    values = F.interpolate(values, size=(16, 16) if of_boxes else (13, 17), mode="bilinear")[:, 0]
    corners = (torch.rand(count, 2, 2) * 1.4 - 0.2).sort(dim=1).values.flatten(1)  # [n, 4]
    scale = torch.tensor((width, height, width, height))
    if of_boxes:
        cells = torch.tensor((0, 0, 16, 16)).expand(count, 4)
        return SmallMasks(values, corners * scale, cells)
    cells = crop_rectangles(corners, 13, 17)
    extents = (scale * torch.tensor((0.0, 0, 1, 1))).expand(count, 4)
    return SmallMasks(crop(values, cells), extents, cells)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (24, 37), (61, 50)], ids=str)
@pytest.mark.parametrize("of_boxes", [False, True], ids=["prototypes", "fc masks"])
@pytest.mark.parametrize("implementation", ["triton", "plain"])
def test_packing(request, size, of_boxes, implementation):
    from yolact_ros.detection import regions

    torch.manual_seed(size[0])
    small = small_masks(7, size, of_boxes)
    expected = small.regions(*size)
    limits = torch.tensor((size[1], size[0]), dtype=torch.float32)
    rectangles = pixel_rectangles(small.extents, small.cells, small.values, limits)
    assert torch.equal(rectangles, expected.rectangles)
    ends = packed_sizes(rectangles).cumsum(0)
    out = torch.full((int(ends[-1]) + 40,), 0x5A, dtype=torch.uint8)
    tensors = [small.values, small.extents, rectangles, ends, out]
    if implementation == "triton":
        from yolact_ros.kernels import masks

        tensors = [tensor.to(request.getfixturevalue("device")) for tensor in tensors]
        masks.pack(*tensors)
    else:
        regions.pack_plain(*tensors)
    starts = torch.nn.functional.pad(ends, (1, 0))[:-1]
    packed = PackedMasks(rectangles, starts, tensors[-1].cpu(), size)
    found = packed.regions(*size)
    # The same but for samples within rounding of one half.
    different = (found.pixels != expected.pixels).float().mean() if len(found.pixels) else 0
    assert different < 2e-3 and torch.equal(found.offsets, expected.offsets)
    if expected.pixels.any():
        assert found.pixels.any()


def test_packing_stops_at_the_end_of_its_room(device):
    from yolact_ros.kernels import masks

    small = small_masks(7, (61, 50), of_boxes=False)
    rectangles = pixel_rectangles(
        small.extents, small.cells, small.values, torch.tensor((50.0, 61.0))
    )
    ends = packed_sizes(rectangles).cumsum(0)
    tensors = [t.to(device) for t in (small.values, small.extents, rectangles, ends)]
    whole, part = (torch.zeros(int(n), dtype=torch.uint8, device=device) for n in (ends[-1], 100))
    beyond = torch.full((150,), 0x5A, dtype=torch.uint8, device=device)
    masks.pack(*tensors, whole)
    masks.pack(*tensors, part)
    masks.pack(*tensors, beyond[:100])
    assert ends[-1] > 100 and torch.equal(part, whole[:100]) and torch.equal(beyond[:100], part)
    assert (beyond[100:] == 0x5A).all()


def test_a_call_shows_which_way_masks_are_packed(device, monkeypatch):
    def fail(*_):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(kernels, "_refused", set())
    with torch.enable_grad():  # as in the threads that ask for a graph
        assert packs_by_kernel(device, torch.float16, 100)
        monkeypatch.setattr("yolact_ros.kernels.masks.pack", fail)
        with pytest.warns(RuntimeWarning, match="pack is not used for float16 .*: Failed to find"):
            assert not packs_by_kernel(device, torch.float16, 100)
        assert not packs_by_kernel(device, torch.float16, 100)


def crowd(batch: int, anchors: int, classes: int, seed: int) -> tuple[Predictions, torch.Tensor]:
    """Predictions of few places, so that boxes overlap, and anchors that decode to them."""
    torch.manual_seed(seed)
    places = torch.rand(max(2, anchors // 6), 2)
    sides = 0.1 + 0.2 * torch.rand(anchors, 2)
    centres = places[torch.randint(len(places), (anchors,))] + 0.03 * torch.randn(anchors, 2)
    logits = torch.randn(batch, anchors, classes + 1) * 2
    logits[..., 0] += 2
    predictions = Predictions(
        class_logits=logits,
        box_offsets=torch.randn(batch, anchors, 4) * 0.5,
        coefficients=torch.randn(batch, anchors, 5),
        prototypes=None,
    )
    return predictions, torch.cat((centres, sides), dim=1)


def moved(predictions: Predictions, device: torch.device, dtype: torch.dtype) -> Predictions:
    tensors = {name: t for name, t in vars(predictions).items() if t is not None}
    return replace(predictions, **{name: t.to(device, dtype) for name, t in tensors.items()})


@pytest.mark.parametrize(
    "classes, changes",
    [
        (1, {}),
        (5, {"score_threshold": 0.0}),
        (5, {"score_threshold": 0.2, "class_ids": (0, 3)}),
        (3, {"nms_top_k": 4, "nms_iou_threshold": 0.3}),
        (9, {"top_k": 7, "confidence_threshold": 0.15}),
    ],
    ids=str,
)
def test_fast_nms(device, classes, changes):
    settings = DetectionSettings(**{"score_threshold": 0.05, **changes})
    predictions, anchors = crowd(batch=2, anchors=41, classes=classes, seed=classes)
    predictions.class_logits[0, :, 0] += 50  # nothing is found in the first image
    for dtype, error in ((torch.float32, 1e-5), (torch.float16, HALF_ERROR)):
        given = moved(predictions, torch.device("cpu"), dtype)
        plain = detect_plain(given, anchors, settings, candidates=41)
        found = detect(moved(given, device, dtype), anchors.to(device), settings, candidates=41)
        assert found.complete is not None and found.complete.all()
        assert torch.equal(found.valid.cpu(), plain.valid)
        assert plain.valid[1].any() and not plain.valid[0].any()
        assert torch.equal(found.class_ids.cpu()[plain.valid], plain.class_ids[plain.valid])
        for name in ("scores", "boxes", "coefficients"):
            ours, twin = getattr(found, name), getattr(plain, name)
            assert ours.shape == twin.shape and ours.dtype == twin.dtype
            assert relative_error(ours.cpu()[plain.valid], twin[plain.valid]) < error, name


def test_fast_nms_of_equal_scores_and_of_no_numbers(device):
    """Of equal scores the lower class comes first, then the earlier anchor."""
    predictions, anchors = crowd(batch=1, anchors=40, classes=2, seed=3)
    predictions.class_logits[...] = torch.tensor((0.0, 2.0, 2.0))
    predictions.class_logits[0, 0] = float("nan")
    predictions.class_logits[0, 1, 2] = float("inf")
    predictions.box_offsets[0, 2] = float("nan")
    predictions.box_offsets[0, 3, 2] = 1e4  # exp of it is infinite
    settings = DetectionSettings(nms_iou_threshold=1.0, top_k=100, score_threshold=0.1)
    with warnings.catch_warnings():  # NumPy's, of the interpreter
        warnings.simplefilter("ignore")
        found = detect(
            moved(predictions, device, torch.float32), anchors.to(device), settings, candidates=40
        )
    assert int(found.valid.sum()) == 2 * 36
    assert found.class_ids[0, :72].tolist() == [0] * 36 + [1] * 36
    expected = predictions.coefficients[0, 4:].repeat(2, 1)
    assert torch.equal(found.coefficients[0, :72].cpu(), expected)


def test_fast_nms_says_what_it_did_not_look_at(device):
    predictions, anchors = crowd(batch=2, anchors=60, classes=3, seed=5)
    predictions.class_logits[1, 10:, 0] += 50
    settings = DetectionSettings(score_threshold=0.1)
    expected = detect_plain(predictions, anchors, settings)
    found = detect(
        moved(predictions, device, torch.float32), anchors.to(device), settings, candidates=10
    )
    assert found.complete.tolist() == [False, True]
    count = int(expected.valid[1].sum())
    assert count > 0 and int(found.valid[1].sum()) == count
    assert relative_error(found.boxes[1, :count], expected.boxes[1, :count]) < 1e-5


def test_the_path_in_fixed_shapes_uses_them(device, monkeypatch):
    from yolact_ros.detection import DetectionSettings
    from yolact_ros.engine.fixed import Batch, FixedPath
    from yolact_ros.engine.runtimes.pytorch import run_network
    from yolact_ros.kernels import deformable, masks, nms
    from yolact_ros.kernels import preprocess as preprocessing
    from yolact_ros.network import EMBEDDED, build
    from yolact_ros.network.deformable import DeformableConv2d

    used = []

    def watch(module, name):
        function = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, **kw: (used.append(name), function(*args, **kw))[1]
        )

    watch(preprocessing, "resize_and_normalise")
    watch(masks, "assemble")
    watch(masks, "pack")
    watch(nms, "fast_nms")
    watch(deformable, "deform_conv2d")
    config = EMBEDDED.replace(
        name="small", image_size=64, fpn_channels=8, num_prototypes=8, mask_rescoring=False
    )
    with torch.enable_grad():  # as a user calls it
        settings = DetectionSettings(score_threshold=0.1, top_k=3)
        runtime = run_network(build(config), device, torch.float32)
        batch = Batch(((24, 32),), settings)
        path = FixedPath(runtime, batch.plan, batch.mask_bytes(8))
        image = torch.zeros(24, 32, 3, dtype=torch.uint8, device=device)
        used.clear()
        path.prepare([image], batch.numbers())
        path.run()
    assert used == ["resize_and_normalise", "fast_nms", "assemble", "pack"]
    DeformableConv2d(16, 16).to(device)(torch.zeros(1, 16, 4, 4, device=device))
    assert used[-1] == "deform_conv2d"
