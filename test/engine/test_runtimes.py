"""Which backend runs, and that all of them find the same."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile

import pytest
import torch

from yolact_ros.engine import Segmenter
from yolact_ros.engine.runtimes import Header, choose, compiled
from yolact_ros.extras import MissingExtraError
from yolact_ros.network import NetworkConfig, WeightsError


def test_auto_is_what_is_installed_and_fastest():
    here = torch.device("cpu")
    best = "torch" if importlib.util.find_spec("openvino") is None else "openvino"
    assert choose("auto", "cpu", "auto", "efficientnet_lite0") == (best, here)
    for backbone in ("", "resnet50", "resnet101", "darknet53"):
        assert choose("auto", "cpu", "auto", backbone) == ("torch", here)
        assert choose("openvino", "cpu", "auto", backbone) == ("openvino", here)
    assert choose("torch", "cpu") == ("torch", here)


@pytest.mark.parametrize("backbone", ["", "resnet50", "efficientnet_lite0"])
def test_auto_takes_every_precision_that_a_cpu_has(backbone):
    """Where OpenVINO refuses bfloat16, since the processor is slow in it, PyTorch does not."""
    backend, _ = choose("auto", "cpu", "bfloat16", backbone)
    try:
        choose("openvino", "cpu", "bfloat16")
    except (ValueError, MissingExtraError):
        assert backend == "torch"
    else:
        assert backend == "openvino"


@pytest.mark.parametrize("backbone", ["resnet50", "efficientnet_lite0"])
def test_auto_fits_the_model(backbone):
    small = NetworkConfig(
        name="small", class_names=("cat",), backbone=backbone, image_size=64, fpn_channels=16
    )
    expected, _ = choose("auto", "cpu", "auto", backbone)
    assert Segmenter(small, "random", device="cpu").runtime.name == expected


def test_auto_is_pytorch_where_openvino_does_not_work(monkeypatch):
    given = ("auto", "cpu", "auto", "efficientnet_lite0")
    pytest.importorskip("openvino")
    assert choose(*given)[0] == "openvino"
    monkeypatch.setitem(sys.modules, "packaging.version", None)  # which OpenVINO does not ask for
    assert choose(*given)[0] == "torch"
    with pytest.raises(MissingExtraError, match=r"OpenVINO needs packaging\.version: pip install"):
        choose("openvino", "cpu")


@pytest.mark.cuda
def test_auto_on_cuda_is_pytorch():
    assert choose("auto", "auto") == ("torch", torch.device("cuda:0"))
    assert choose("openvino", "auto") == ("openvino", torch.device("cpu"))
    with pytest.raises(ValueError, match="backend='openvino' is not allowed on cuda:0"):
        choose("openvino", "cuda")


def test_unknown_backends_are_refused(small_config):
    message = "backend='tensorrt' is not allowed: one of auto, torch, inductor, openvino, onnx"
    with pytest.raises(ValueError, match=message):
        Segmenter(small_config, "random", backend="tensorrt")


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_backends_find_the_same(small_file, small_segmenter, reference_weights, backend):
    pytest.importorskip(backend)
    pytest.importorskip({"openvino": "openvino", "onnxruntime": "onnxscript"}[backend])
    options = {"weights": small_file, "device": "cpu", "score_threshold": 0.2, "top_k": 10}
    segmenter = Segmenter(**options, backend=backend)
    assert f"on cpu, {backend}, float32" in segmenter.description
    images = [reference_weights.image(60, 90, seed=1), reference_weights.image(96, 80, seed=2)]
    for ours, theirs in zip(segmenter(images), small_segmenter(images), strict=True):
        assert len(ours) == len(theirs) > 0
        torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=0, atol=0.01)
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-4)
        assert torch.equal(ours.class_ids, theirs.class_ids)
    again = segmenter(images[0])  # nothing of an earlier call is written over
    torch.testing.assert_close(again.boxes, small_segmenter(images[0]).boxes, rtol=0, atol=0.01)
    for precision in ("float16", "int8"):
        with pytest.raises(ValueError, match=rf"precision='{precision}' is not allowed for"):
            Segmenter(**options, backend=backend, precision=precision)


@pytest.mark.parametrize(
    "backend, package, extra",
    [("openvino", "openvino", "openvino"), ("onnxruntime", "onnxruntime", "export")],
)
def test_a_missing_backend_is_named(small_file, backend, package, extra):
    pytest.importorskip("onnxscript")
    code = f"""
import sys
sys.modules[{package!r}] = None
from yolact_ros.cli import main
arguments = ["predict", sys.argv[1], "--weights", sys.argv[2], "--backend", {backend!r}]
sys.exit(main(arguments))
"""
    command = [sys.executable, "-c", code, __file__, str(small_file)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"needs {package}: pip install -r requirements/{extra}.txt" in result.stderr


def test_of_a_reader_error_the_line_with_the_reason_is_told(tmp_path):
    pytest.importorskip("openvino")
    (tmp_path / "net.xml").write_text("<net><layers>")
    (tmp_path / "net.bin").write_bytes(bytes(64))
    with pytest.raises(WeightsError, match=r"net\.xml is not a whole OpenVINO model: Unable to"):
        Segmenter(weights=tmp_path / "net.xml")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"anchor_octaves": 1}, r"class_logits of the shape \[1, 776, 4\]; it must be \[any, 388,"),
        ({"mask_branch": "fc"}, r"coefficients of the shape \[1, 776, 32\]; .* 776, 256\]"),
    ],
    ids=str,
)
def test_a_package_that_does_not_fit_its_header(
    small_network, reference_weights, tmp_path, monkeypatch, changes, message
):
    """Here with a stand-in for what is compiled."""
    image = reference_weights.image(60, 90, seed=1)

    def package(images):
        outputs = small_network(images)
        return [getattr(outputs, name) for name in Header.of(small_network).outputs]

    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: package)
    instructions = " ".join(compiled._instructions(torch.device("cpu")))
    path, config = tmp_path / "net.pt2", small_network.config
    for header in (Header(config), Header(config.replace(**changes))):
        values = header.to_metadata() | {"instructions": instructions}
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"net/{compiled._ENTRY}", json.dumps(values))
        segmenter = Segmenter(weights=path, score_threshold=0.2)
        if header.config == config:
            assert len(segmenter(image)) > 0
    with pytest.raises(WeightsError, match=rf"net.pt2 has {message}"):
        segmenter(image)
