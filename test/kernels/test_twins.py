"""Each Triton kernel against its twin in plain PyTorch.

On a CUDA device, or under Triton's interpreter on the CPU: `test_interpreter.py` does that.
"""

from __future__ import annotations

import os
import warnings

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d

from yolact_ros import kernels
from yolact_ros.detection.candidates import best_scores, best_scores_plain, decode, decode_plain
from yolact_ros.detection.masks import assemble, crop, crop_rectangles, cropped_masks
from yolact_ros.detection.nms import suppress, suppress_plain
from yolact_ros.detection.regions import (
    PackedMasks,
    SmallMasks,
    pack,
    packed_sizes,
    pixel_rectangles,
)
from yolact_ros.engine.preprocess import normalise, preprocess, resize
from yolact_ros.network import Predictions, config_of

ON_CPU = os.environ.get("TRITON_INTERPRET") == "1"
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
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, or Triton's interpreter (test_interpreter.py)")
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

    from yolact_ros.kernels import masks, nms

    monkeypatch.setattr(kernels, "_refused", set())
    boxes = torch.tensor((((0.0, 0, 1, 1), (0, 0, 1, 0.9), (0, 0, 0.1, 0.1)),), device=device)
    index = torch.arange(3, device=device)[None]
    scores = torch.tensor(((0.9, 0.8, 0.7),), device=device)
    expected = suppress_plain(boxes, index, scores, 0.5)
    assert torch.equal(suppress(boxes, index, scores, 0.5), expected)
    errors = iter(
        (RuntimeError("Triton Error [CUDA]: out of memory"), OutOfResources(9, 8, "shared memory"))
    )

    def fail(*args: object) -> torch.Tensor:
        raise next(errors)

    monkeypatch.setattr(nms, "suppress", fail)
    with pytest.raises(RuntimeError, match="out of memory"):  # which says nothing of the kernel
        suppress(boxes, index, scores, 0.5)
    assert kernels.usable(boxes, "suppress")
    with pytest.warns(
        RuntimeWarning, match="kernel suppress is not used .*: OutOfResources"
    ) as told:
        for _ in range(2):
            assert torch.equal(suppress(boxes, index, scores, 0.5), expected)
    assert len(told) == 1 and kernels.usable(boxes, "pack")
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


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_best_scores(device, classes):
    torch.manual_seed(classes)
    logits = torch.randn(2, 21, classes + 1) * 4
    logits[0, 0, 0] = 60  # background alone, to the last digit
    for dtype in (torch.float32, torch.float16):
        given = logits.to(dtype)
        found = best_scores(given.to(device))
        torch.testing.assert_close(found.cpu(), best_scores_plain(given), rtol=1e-5, atol=1e-30)
    spoilt = logits.clone()
    spoilt[1, 3, 0] = spoilt[1, 4, 1] = float("nan")
    spoilt[0, 5, classes] = float("inf")
    with warnings.catch_warnings():  # NumPy's, of the interpreter
        warnings.simplefilter("ignore")
        bad = best_scores(spoilt.to(device)).cpu()
    assert bad[1, 3] == bad[1, 4] == bad[0, 5] == -1
    assert torch.equal(bad == -1, best_scores_plain(spoilt) == -1)


@pytest.mark.parametrize("count", [1, 20, None])
def test_decoding_of_candidates(device, count):
    torch.manual_seed(0)
    anchors = torch.rand(37, 4)
    logits, offsets = torch.randn(2, 37, 6) * 3, torch.randn(2, 37, 4) * 2
    offsets[0, 0, 2] = 1e4  # exp of it is infinite
    offsets[1, 1, 0] = float("nan")
    index = None
    if count is not None:
        index = torch.stack([torch.randperm(37)[:count] for _ in range(2)])
        index[0, -1] = 0
    known = torch.rand(2, count or 37) < 0.8
    known[0, -1] = True
    for dtype in (torch.float32, torch.float16):
        given = logits.to(dtype), offsets.to(dtype), anchors, index, known
        expected = decode_plain(*given)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            moved = [None if each is None else each.to(device) for each in given]
            predictions = Predictions(*moved[:2], coefficients=None, prototypes=None)
            found = decode(predictions, *moved[2:])
        for ours, twin in zip(found, expected, strict=True):
            assert ours.dtype == torch.float32 and ours.shape == twin.shape
            torch.testing.assert_close(ours.cpu(), twin, rtol=1e-5, atol=1e-6)
        assert (found[0][0, -1 if count else 0] == 0).all()
        assert ((found[1] == -1).all(dim=1).cpu() >= ~known).all()


@pytest.mark.parametrize("count", [1, 5, 32, 70])
@pytest.mark.parametrize("threshold", [0, 0.5, 1])
def test_suppression(device, count, threshold):
    from yolact_ros.kernels import nms

    torch.manual_seed(count)
    # Corners on a coarse grid, so that boxes come twice, touch, and overlap by exactly one half.
    boxes = torch.randint(0, 5, (2, 90, 4)).float() / 4
    boxes = torch.cat((boxes[..., :2], boxes[..., :2] + boxes[..., 2:]), dim=-1)
    boxes[1] += torch.rand(90, 4) / 10
    boxes[:, 0] = 0
    index = torch.rand(2, 3, 90).argsort(dim=2)[..., :count]
    scores = torch.randint(1, 9, (2, 3, count)).float().sort(descending=True).values / 9
    scores[..., count * 4 // 5 :], index[..., count * 4 // 5 :] = -1, 0  # padding
    expected = suppress_plain(boxes, index, scores, threshold)
    found = nms.suppress(boxes.to(device), index.to(device), scores.to(device), threshold)
    assert torch.equal(found.cpu(), expected)
    if count == 70:
        assert torch.equal(expected, scores) == (threshold == 1)
    # One list for an image, as boxes that compete across classes have.
    one = nms.suppress(boxes.to(device), index[:, 1].to(device), scores[:, 1].to(device), threshold)
    assert torch.equal(one.cpu(), expected[:, 1])
    if threshold == 0:  # there overlaps in half precision are those in float32
        halves = boxes.half(), index, scores.half()
        twin = suppress_plain(halves[0].float(), index, halves[2].float(), 0)
        ours = nms.suppress(*(half.to(device) for half in halves), 0)
        assert torch.equal(ours.cpu().float(), twin)


def test_the_path_in_fixed_shapes_uses_them(device, monkeypatch):
    from yolact_ros.detection import DetectionSettings
    from yolact_ros.engine.fixed import Batch, FixedPath
    from yolact_ros.engine.runtimes.pytorch import run_network
    from yolact_ros.kernels import candidates, deformable, masks, nms
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
    watch(candidates, "best_scores")
    watch(candidates, "decode")
    watch(masks, "assemble")
    watch(masks, "pack")
    watch(nms, "suppress")
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
    assert used == [
        "resize_and_normalise",
        "best_scores",
        "decode",
        "suppress",
        "assemble",
        "pack",
    ]
    DeformableConv2d(16, 16).to(device)(torch.zeros(1, 16, 4, 4, device=device))
    assert used[-1] == "deform_conv2d"
