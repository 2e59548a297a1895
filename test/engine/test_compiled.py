"""The network compiled by PyTorch: at run time, and ahead of time for one kind of machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.cpp_extension import CUDA_HOME
from torchvision.ops import deform_conv2d

from yolact_ros.detection import DetectionSettings
from yolact_ros.engine import Segmenter, preprocess
from yolact_ros.engine.fixed import Batch, FixedPath
from yolact_ros.engine.runtimes import choose, compiled, inductor, read, run
from yolact_ros.engine.runtimes.header import Header
from yolact_ros.engine.runtimes.tracing import trace
from yolact_ros.export import export
from yolact_ros.extras import MissingExtraError
from yolact_ros.network import WeightsError, build

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def images(reference_weights) -> list[Tensor]:
    return [torch.from_numpy(reference_weights.image(60, 90, seed=i)) for i in range(2)]


class TinyBackbone(nn.Module):
    """The feature maps of another backbone by a convolution each: little to compile."""

    def __init__(self, channels: tuple[int, int, int]):
        super().__init__()
        self.channels = channels
        inputs, self.layers = 3, nn.ModuleList()
        for stride, outputs in zip((8, 2, 2), channels, strict=True):
            self.layers.append(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1))
            inputs = outputs

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return tuple(features)


def test_inductor_gives_what_pytorch_gives(small_segmenter, images):
    torch.manual_seed(0)
    net = build(small_segmenter.config.replace(image_size=64, mask_branch="none"))
    net.backbone = TinyBackbone(net.backbone.channels).eval()
    plain = run(net, "torch", torch.device("cpu"))
    small_segmenter.runtime = runtime = run(net, "inductor", torch.device("cpu"))
    assert "on cpu, inductor, float32" in small_segmenter.description
    small_segmenter.warm_up((60, 90))
    compilations = counters["stats"]["unique_graphs"]
    with torch.no_grad():
        for image in images:
            batch = preprocess([image], runtime.config)
            ours, theirs = runtime(batch), plain(batch)
            for name in ("class_logits", "box_offsets"):
                a, b = getattr(ours, name), getattr(theirs, name)
                assert b.std() > 1e-3
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    # It gives predictions, so that the path in fixed shapes can be captured around it.
    found = small_segmenter(images[0])
    batch = Batch.of(images[:1], small_segmenter.settings)
    path = FixedPath(runtime, batch.plan, batch.mask_bytes(20))
    path.prepare(images[:1], batch.numbers())
    path.run()
    (fixed,) = path.results.instances(((60, 90),), small_segmenter.class_names)
    assert len(fixed) == len(found) > 0
    torch.testing.assert_close(fixed.scores, found.scores, rtol=1e-4, atol=1e-5)
    # All of it was compiled by the warm-up.
    assert counters["stats"]["unique_graphs"] == compilations > 0


def test_no_compiler(small_segmenter, small_network, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingExtraError, match=r"inductor needs a C.. compiler.*no-such-compiler"):
        inductor.compile_network(small_segmenter.runtime)
    program = torch.export.export(torch.nn.Linear(1, 1), (torch.zeros(1, 1),))
    with pytest.raises(MissingExtraError, match=r"net.pt2, .* needs a C.. compiler.*install g.."):
        compiled.save(program, Header.of(small_network), tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_choice_of_inductor():
    assert choose("inductor", "cpu", "bfloat16") == ("inductor", torch.device("cpu"))
    with pytest.raises(ValueError, match=r"precision='float16' is not allowed on cpu"):
        choose("inductor", "cpu", "float16")


def test_a_graph_is_of_the_networks_type(small_config):
    """But the anchors, which boxes are made of, stay float32."""
    net = build(small_config.replace(image_size=64))
    net.backbone = TinyBackbone(net.backbone.channels)
    net = net.eval().to(torch.bfloat16)
    program = trace(net, Header.of(net, DetectionSettings()))
    images = torch.zeros(1, 3, 64, 64, dtype=torch.bfloat16)
    boxes, *_, prototypes = program.module()(images)
    assert boxes.dtype == torch.float32 and prototypes.dtype == torch.bfloat16


class Deformable(nn.Module):
    """What a network with deformable convolutions has in its graph, and little else."""

    def forward(self, images: Tensor) -> tuple[Tensor]:
        offsets = images.new_zeros(len(images), 18, *images.shape[2:])
        return (deform_conv2d(images, offsets, images.new_ones(1, 3, 3, 3), padding=1),)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (g++)")
def test_a_package_with_deformable_convolutions_in_a_process_of_its_own(small_config, tmp_path):
    config = small_config.replace(backbone="resnet50", dcn_variant="all")
    module, path = Deformable().eval(), tmp_path / "net.pt2"
    module.register_buffer("weight", torch.ones(1))
    program = torch.export.export(module, (torch.zeros(1, 3, 8, 8),))
    compiled.save(program, Header(config), path)
    text = (
        "import sys; from yolact_ros.engine.runtimes import compiled; from pathlib import Path\n"
        "assert 'torchvision' not in sys.modules; compiled.read(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", text, str(path)], check=True, timeout=300)


def test_a_package_has_the_precision_of_its_segmenter(small_segmenter, tmp_path):
    images = {"black": np.zeros((8, 8, 3), np.uint8)}
    for name, precision, message in (
        ("net.pt2", "float16", "precision='float16' is not allowed: the segmenter has float32"),
        ("net.pt2", "int8", "net.pt2 is not allowed for int8"),
        ("net.onnx", "float16", "'float16' is not allowed for a .onnx: it must be 'float32'$"),
    ):
        with pytest.raises(ValueError, match=message):
            export(small_segmenter, tmp_path / name, images, precision=precision)
    assert not list(tmp_path.iterdir())


# Packages for machines that are not this one: what they say is read before they are loaded


def package(path, config, **changes: str):
    """A package that holds nothing but what `save` adds to one."""
    values = Header(config).to_metadata() | changes
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"net/{compiled._ENTRY}", json.dumps(values))
    return path


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["auto", "cuda", "cpu"])
def test_a_package_for_cuda_is_refused_without_cuda(small_config, tmp_path, device):
    values = {"device": "cuda", "instructions": "compute capability 9.0", "precision": "float16"}
    path = package(tmp_path / "net.pt2", small_config, **values)
    with pytest.raises(WeightsError, match=r"net.pt2 was compiled for CUDA, and .* no CUDA device"):
        Segmenter(weights=path, device=device)


def test_packages_that_this_machine_cannot_run(small_config, tmp_path):
    here = " ".join(compiled._instructions(torch.device("cpu")))
    path = tmp_path / "net.pt2"
    for instructions in (f"{here} avx1024 Z80", "avx1024 Z80"):
        package(path, small_config, instructions=instructions)
        with pytest.raises(WeightsError, match="cpu with Z80 avx1024, which this one lacks"):
            read(path)
    package(path, small_config)
    with pytest.raises(WeightsError, match="for a cpu with unknown-parts, which"):
        read(path)
    package(path, small_config, instructions=here, precision="bfloat16")
    with pytest.raises(ValueError, match=r"'float32' is not allowed for net.pt2 .*auto, bfloat16"):
        read(path, "float32")
    package(path, small_config, instructions=here)
    with pytest.raises(ValueError, match=r"device='cuda:3' is not allowed"):
        read(path, device="cuda:3")
    package(path, small_config, device="abacus", instructions="beads")
    with pytest.raises(ValueError, match=r"device='abacus' is not allowed"):
        read(path)
    package(path, small_config, instructions=here)
    with pytest.raises(WeightsError, match=r"net.pt2 is not a whole compiled package"):
        read(path)  # the machine code is missing


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_files_that_run_on_a_cpu_alone(tmp_path, ending):
    with pytest.raises(
        ValueError, match=rf"device='cuda' is not allowed: net{ending} runs on a CPU"
    ):
        Segmenter(weights=tmp_path / f"net{ending}", device="cuda")


@pytest.mark.cuda
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            "inductor", marks=pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
        ),
        pytest.param(
            "package", marks=pytest.mark.skipif(CUDA_HOME is None, reason="needs the CUDA toolkit")
        ),
    ],
)
def test_graphs_are_captured_around_compiled_networks(small_file, tmp_path, images, kind):
    options = {"device": "cuda", "score_threshold": 0.2, "top_k": 10}
    plain = Segmenter(weights=small_file, **options)
    if kind == "inductor":
        segmenter = Segmenter(weights=small_file, backend="inductor", **options)
    else:
        path = tmp_path / "net.pt2"
        header = plain.runtime.header
        compiled.save(trace(plain.runtime.run, header), header, path)
        segmenter = Segmenter(weights=path, **options)
        assert segmenter.runtime.dtype == torch.float16
        with pytest.raises(ValueError, match=r"device='cpu' is not allowed: .* compiled for cuda"):
            Segmenter(weights=path, device="cpu")
    segmenter.warm_up((60, 90))
    plain.warm_up((60, 90))
    assert len(segmenter._graphs) == 1
    for image in images:
        found, expected = segmenter(image), plain(image)
        assert len(found) == len(expected) > 0
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=0.02)
