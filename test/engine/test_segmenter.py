"""Images in, instances out; which model and weights a call means."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from yolact_ros.detection import Instances
from yolact_ros.engine import DownloadError, Segmenter, preprocess
from yolact_ros.network import (
    EMBEDDED,
    WeightsError,
    build,
    config_of,
    official_name,
    save_weights,
)


@pytest.fixture(scope="session")
def image(reference_weights) -> np.ndarray:
    return reference_weights.image(60, 90, seed=1)


def assert_same(ours, other) -> None:
    assert len(ours) == len(other) > 0
    torch.testing.assert_close(ours.boxes, other.boxes)
    torch.testing.assert_close(ours.scores, other.scores)
    assert torch.equal(ours.class_ids, other.class_ids)
    assert torch.equal(ours.masks, other.masks)


# Images


def test_one_image(small_segmenter, image):
    found = small_segmenter(image)
    assert len(found) == 10 and found.regions().areas().min() > 0
    assert len(found.scores.unique()) == 10
    assert found.image_size == (60, 90) and found.masks.shape == (10, 60, 90)
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)
    assert set(found.names) <= {"cat", "dog", "person"}
    (again,), stages = small_segmenter.submit([image]).result()
    assert torch.equal(again.boxes, found.boxes)
    assert min(stages.preprocess, stages.network, stages.detection) > 0


def test_threads_take_turns(small_segmenter, image):
    """A network that computes takes no other image, as OpenVINO says."""
    expected = small_segmenter(image)
    run, free = small_segmenter.runtime.run, threading.Lock()

    def check(images: torch.Tensor):
        assert free.acquire(blocking=False), "Infer Request is busy"
        time.sleep(0.01)
        found = run(images)
        free.release()
        return found

    small_segmenter.runtime = replace(small_segmenter.runtime, run=check)
    with ThreadPoolExecutor(3) as threads:
        for found in threads.map(small_segmenter, [image] * 6):
            assert_same(found, expected)


def test_the_image_is_not_changed(small_segmenter, image):
    before = image.copy()
    small_segmenter(image)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("order", ["rows", "columns", "channels", "window", "fortran", "read-only"])
def test_any_memory_layout(small_segmenter, image, order):
    laid_out = {
        "rows": lambda: image[::-1],
        "columns": lambda: image[:, ::-1],
        "channels": lambda: image[..., ::-1],
        "window": lambda: np.pad(image, ((2, 3), (4, 5), (0, 0)))[2:-3, 4:-5],
        "fortran": lambda: np.asfortranarray(image),
        "read-only": lambda: np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape),
    }[order]()
    assert_same(small_segmenter(laid_out), small_segmenter(np.ascontiguousarray(laid_out)))


def test_tensors(small_segmenter, image):
    assert_same(small_segmenter(torch.from_numpy(image)), small_segmenter(image))


@pytest.mark.parametrize("kind", [list, tuple])
def test_images_of_different_sizes(small_segmenter, reference_weights, kind):
    image = reference_weights.image(100, 200, seed=2)
    images = [image, image[:96, :96], image[20:51], image[:8, :8]]
    together = small_segmenter(kind(images))
    assert [each.image_size for each in together] == [(100, 200), (96, 96), (31, 200), (8, 8)]
    for image, each in zip(images, together, strict=True):
        assert_same(each, small_segmenter(image))


def test_no_images(small_segmenter):
    assert small_segmenter([]) == []


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2160, 3840)], ids=str)
def test_images_of_extreme_sizes(small_segmenter, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = small_segmenter(image)
    assert found.image_size == size
    assert found.label_image().shape == size


@pytest.mark.parametrize(
    "image, message",
    [
        (None, "NoneType is not allowed"),
        ("image.png", "str is not allowed"),
        (np.zeros((4, 4, 3)), "float64 is not allowed: it must be a uint8 array"),
        (np.zeros((4, 4, 3), np.int8), "int8 is not allowed"),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\) is not allowed: it must be \[H, W, 3\]"),
        (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 4\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"shape \(2, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.zeros((4, 0, 3), np.uint8), r"shape \(4, 0, 3\)"),
        (np.zeros((), np.uint8), r"shape \(\)"),
        (torch.zeros(4, 4, 3), "float32 is not allowed"),
        ([np.zeros((4, 4, 3), np.uint8), None], "NoneType"),
    ],
    ids=lambda value: getattr(value, "shape", None) and f"{value.dtype}{tuple(value.shape)}",
)
def test_what_is_no_image_is_refused(small_segmenter, image, message):
    with pytest.raises(ValueError, match=message):
        small_segmenter(image)


def test_settings_change_between_calls(small_segmenter, image):
    many = small_segmenter(image)
    before = small_segmenter.settings
    with pytest.raises(ValueError, match=r"class_ids=\(3,\) is not allowed: .* classes 0 to 2"):
        small_segmenter.settings = replace(before, class_ids=(3,))
    assert small_segmenter.settings == before
    small_segmenter.settings = replace(small_segmenter.settings, top_k=3)
    assert_same(small_segmenter(image), many[:3])
    small_segmenter.settings = replace(small_segmenter.settings, score_threshold=1.0)
    assert len(small_segmenter(image)) == 0


def test_colour_channels_are_not_swapped(small_config):
    """The network gets RGB, normalised with the mean of each channel."""
    image = torch.zeros(10, 10, 3, dtype=torch.uint8)
    image[..., 0] = 255  # blue
    for backbone, blue, rest in (
        ("resnet50", (255 - 103.94) / 57.38, (-123.68 / 58.40, -116.78 / 57.12)),
        ("darknet53", 1.0, (0.0, 0.0)),
        ("efficientnet_lite0", 1.0, (-127 / 128, -127 / 128)),
    ):
        batch = preprocess([image], small_config.replace(backbone=backbone))
        assert batch.shape == (1, 3, 96, 96)
        means = batch.mean(dim=(0, 2, 3)).tolist()
        assert means == pytest.approx([*rest, blue], abs=1e-4)


# Devices


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "CPU", "", "cpu:1"])
def test_devices_that_are_not_there(small_config, device):
    with pytest.raises(ValueError, match="is not allowed: this machine has auto, cpu"):
        Segmenter(small_config, "random", device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_an_old_driver_counts_is_not_taken(small_config, monkeypatch):
    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK", raising=False)  # Lightning's
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert Segmenter(small_config, "random", device="auto").device.type == "cpu"
    with pytest.raises(ValueError, match=r"'cuda' is not allowed: this machine has auto, cpu$"):
        Segmenter(small_config, "random", device="cuda")


@pytest.mark.parametrize("precision", ["float16", "int8", ""])
def test_precisions_that_a_cpu_cannot_do(small_config, precision):
    with pytest.raises(
        ValueError, match=rf"precision='{precision}'.*cpu: one of auto, float32, bfloat16"
    ):
        Segmenter(small_config, "random", device="cpu", backend="torch", precision=precision)


PRECISIONS = ("float32", "float16", "bfloat16")


@pytest.mark.parametrize("variant", ["none", "all"])
@pytest.mark.parametrize(
    "device, precision",
    [
        ("cpu", "bfloat16"),
        *(pytest.param("cuda", each, marks=pytest.mark.cuda) for each in PRECISIONS),
    ],
)
def test_devices_and_precisions_find_the_same(
    small_config, reference_weights, image, tmp_path, device, precision, variant
):
    """As a CPU in float32; on CUDA stage by stage at first, then as a graph."""
    net = build(small_config.replace(backbone="resnet50", dcn_variant=variant))
    for name, tensor in net.state_dict().items():  # fresh ones are sure of all, and shift nothing
        tensor.copy_(torch.from_numpy(reference_weights.fill(official_name(name), tensor.shape)))
    path = tmp_path / "own.safetensors"
    save_weights(net, path)
    options = {"weights": path, "backend": "torch", "score_threshold": 0.2, "top_k": 300}
    expected = Segmenter(device="cpu", **options)(image)
    segmenter = Segmenter(device=device, precision=precision, **options)
    stage_by_stage = segmenter(image)
    segmenter.warm_up(image.shape[:2])
    assert device == "cpu" or len(segmenter._graphs) == 1
    for found in (stage_by_stage, segmenter(image)):
        assert found.boxes.device.type == "cpu"
        assert_agree(found, expected, coarse=precision == "bfloat16")


def assert_agree(ours: Instances, other: Instances, coarse: bool) -> None:
    """But for rounding, float16 and TensorFloat-32 having 11 bits and bfloat16 8; and but for some
    of a hundred, where it decides which of two boxes suppresses the other."""
    edge, score, overlap = (0.1, 0.03, 0.7) if coarse else (0.05, 0.005, 0.9)
    a, b = (each.masks.flatten(1).float() for each in (ours, other))
    common = a @ b.T
    same = common >= overlap * (a.sum(dim=1, keepdim=True) + b.sum(dim=1) - common)
    same &= (ours.boxes.unsqueeze(1) - other.boxes).abs().amax(dim=2) < edge
    same &= (ours.scores.unsqueeze(1) - other.scores).abs() < score
    same &= ours.class_ids.unsqueeze(1) == other.class_ids
    assert common.any()
    for partners, instances in ((same, ours), (same.T, other)):
        found = partners.any(dim=1)[instances.scores > 0.7]  # less has a threshold near
        assert len(found) >= 20 and found.float().mean() >= 0.95


# Models and weights


def test_bad_settings_are_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="nms_method='best'"):
        Segmenter(weights=tmp_path / "nowhere.pth", nms_method="best")


def test_nothing_named_means_the_embedded_model():
    segmenter = Segmenter(device="cpu", backend="torch")
    assert segmenter.config.name == EMBEDDED.name == "yolact_person_lite"
    assert segmenter.class_names == ("person",)
    assert segmenter.description == (
        "yolact_person_lite (embedded weights) on cpu, torch, float32, classes: person"
    )
    for named in ({"model": EMBEDDED.name}, {"weights": EMBEDDED.name}):
        other = Segmenter(**named, device="cpu", backend="torch")
        assert other.description == segmenter.description


def test_embedded_model_finds_people_in_the_shipped_photographs(repository):
    segmenter = Segmenter(device="cpu", backend="torch")
    for path in sorted((repository / "yolact_ros/demo/photos").glob("*.jpg")):
        found = segmenter(cv2.imread(str(path)))
        assert len(found) >= 1, path.name
        # The best mask lies in its box and fills a good part of it.
        x1, y1, x2, y2 = found.integer_boxes()[0].tolist()
        area, box = int(found[0].masks.sum()), (x2 - x1) * (y2 - y1)
        assert 0.2 * box < area < 1.1 * box, path.name


def test_random_weights():
    segmenter = Segmenter("yolact_resnet50", "random", device="cpu", backend="torch")
    assert segmenter.config == config_of("yolact_resnet50")
    assert segmenter.description == (
        "yolact_resnet50 (random weights) on cpu, torch, float32, "
        "classes: person, bicycle, car, motorcycle, airplane, … (80)"
    )


def test_own_file_says_its_model(small_config, image, tmp_path):
    path = tmp_path / "own.safetensors"
    save_weights(build(small_config), path)
    for weights in (path, str(path)):
        segmenter = Segmenter(weights=weights, device="cpu", backend="torch")
        assert segmenter.config == small_config
        assert segmenter.description.startswith("small (weights own.safetensors) on cpu")


def test_home_folder(small_config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_weights(build(small_config), tmp_path / "own.safetensors")
    assert (
        Segmenter(weights="~/own.safetensors", device="cpu", backend="torch").config == small_config
    )


@pytest.fixture(scope="session")
def official_file(tmp_path_factory, checkpoints):
    """A file with the official name and shapes of yolact_resnet50."""
    path = tmp_path_factory.mktemp("official") / "yolact_resnet50_54_800000.pth"
    path.write_bytes(checkpoints["yolact_resnet50"])
    return path


def test_official_file_name_says_the_model(official_file):
    assert Segmenter(weights=official_file, device="cpu", backend="torch").config == config_of(
        "yolact_resnet50"
    )


def test_a_named_model_comes_before_what_the_file_says(official_file):
    config = config_of("yolact_resnet50").replace(name="smaller", image_size=320)
    segmenter = Segmenter(config, official_file, device="cpu", backend="torch")
    assert segmenter.config == config


def test_a_file_that_says_nothing_needs_a_model(small_config, tmp_path):
    net = build(small_config)
    path = tmp_path / "mine.pth"
    torch.save({official_name(n): v for n, v in net.state_dict().items()}, path)
    with pytest.raises(
        WeightsError, match=r"mine.pth does not say which model.*yolact_base.*person_lite"
    ):
        Segmenter(weights=path, device="cpu", backend="torch")
    assert Segmenter(small_config, path, device="cpu", backend="torch").config == small_config


def test_a_file_of_another_network_is_none_of_ours(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(1)}, path)
    message = r"no YOLACT network: its tensors are conv1\.weight, fc\.bias$"
    with pytest.raises(WeightsError, match=message):
        Segmenter(weights=path, device="cpu", backend="torch")


def test_exported_weights_take_no_other_backend(tmp_path):
    with pytest.raises(ValueError, match=r"net\.onnx is exported already and has its own backend"):
        Segmenter(weights=tmp_path / "net.onnx", backend="torch")


def test_foreign_safetensors_with_a_named_model(small_config, tmp_path):
    import safetensors.torch

    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file(build(small_config).state_dict(), path)
    with pytest.raises(WeightsError, match="name the model"):
        Segmenter(weights=path, device="cpu", backend="torch")
    assert Segmenter(small_config, path, device="cpu", backend="torch").config == small_config


def test_weights_of_another_model(official_file):
    with pytest.raises(
        WeightsError, match=r"does not fit the model yolact_darknet53.*yolact_resnet50"
    ):
        Segmenter("yolact_darknet53", official_file, device="cpu", backend="torch")
    with pytest.raises(
        WeightsError, match=r"model yolact_resnet50 with backbone='resnet101', .*: .*50"
    ):
        Segmenter(weights=official_file, backbone="resnet101", device="cpu", backend="torch")
    message = r", dcn_variant='all': .* missing: backbone\.layers\.1\.0\.conv2\.bias"
    with pytest.raises(WeightsError, match=message):
        Segmenter(weights=official_file, dcn_variant="all", device="cpu", backend="torch")


def test_backbone_and_dcn_variant_replace_the_models():
    segmenter = Segmenter(
        "yolact_plus_resnet50",
        "random",
        backbone="resnet101",
        dcn_variant="last10",
        device="cpu",
        backend="torch",
    )
    assert segmenter.config.backbone == "resnet101"
    assert segmenter.config.dcn_variant == "last10"
    with pytest.raises(ValueError, match="needs a ResNet"):
        Segmenter("yolact_plus_resnet50", "random", backbone="darknet53")


def test_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="there is no model 'yolov8'; the models are"):
        Segmenter("yolov8")
    with pytest.raises(WeightsError, match=r"there is no weight file .*nowhere.pth"):
        Segmenter(weights=tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match=r"there is no weight file /.*/yolact_resnet; "):
        Segmenter(weights="yolact_resnet")
    with pytest.raises(DownloadError, match="no weights of 'yolact_im400' to download"):
        Segmenter("yolact_im400")


def test_a_model_of_ones_own_needs_weights(small_config):
    with pytest.raises(WeightsError, match="no weights for small: give a weight file"):
        Segmenter(small_config)
