"""The parts that `yolact explain` shows add up to the masks."""

import cv2
import numpy as np
import pytest
import torch

from yolact_ros.cli import main
from yolact_ros.engine import Segmenter
from yolact_ros.evaluation.explain import explain, write_figures
from yolact_ros.network import EMBEDDED, build, save_weights


@pytest.fixture(scope="module")
def image():
    noise = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    return cv2.resize(noise, (160, 120), interpolation=cv2.INTER_CUBIC)


def weights_of(folder, **changes):
    torch.manual_seed(0)
    net = build(EMBEDDED.replace(mask_rescoring=False), image_size=128, fpn_channels=16, **changes)
    if net.protonet is not None:
        torch.nn.init.constant_(net.head.coefficients.bias, 1)  # masks that are not empty
    path = folder / "small.safetensors"
    save_weights(net, path)
    return path


def test_the_sum_of_the_parts_is_the_mask(tmp_path, image):
    segmenter = Segmenter(
        weights=weights_of(tmp_path), backend="torch", score_threshold=0.2, top_k=5
    )
    explanation = explain(segmenter, image)
    instances = segmenter(image)
    assert len(explanation.assemblies) == len(instances) > 0
    for assembly, mask in zip(explanation.assemblies, instances.masks.numpy(), strict=True):
        assert (assembly.mask == mask).all()
        total = np.tensordot(assembly.coefficients, explanation.prototypes, axes=1)
        np.testing.assert_allclose(assembly.total, total, rtol=1e-4, atol=1e-4)
        # Inside the crop, the mask is where the sum is positive, but for pixels along the edge.
        large = cv2.resize(total, (160, 120)) > 0
        assert (mask & ~large).sum() <= 0.05 * mask.sum()
    assert any(assembly.mask.any() for assembly in explanation.assemblies)


def test_the_command_writes_figures(tmp_path, image, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), image)
    output = tmp_path / "out"
    output.mkdir()
    (output / "assembly-03-person.png").touch()  # of an earlier image
    (output / "assembly-line.png").touch()  # the user's
    weights = str(weights_of(tmp_path))
    arguments = ["--weights", weights, "--output", str(output), "--top-k", "2", "--score", "0.2"]
    assert main(["explain", str(tmp_path / "a.png"), *arguments]) == 0
    assert sorted(p.name for p in output.iterdir()) == [
        "assembly-01-person.png",
        "assembly-02-person.png",
        "assembly-line.png",
        "overlay.png",
        "prototypes.png",
    ]
    assert cv2.imread(str(output / "prototypes.png")).shape == (4 * 180, 8 * 180, 3)
    assert main(["explain", str(tmp_path / "a.png"), "--output", str(tmp_path)]) == 1
    assert "a.png itself, which could be overwritten" in capsys.readouterr().err


def test_names_of_classes_are_no_folders(tmp_path, image):
    weights = weights_of(tmp_path, class_names=("x/../../y",))
    segmenter = Segmenter(weights=weights, backend="torch", score_threshold=0.2, top_k=2)
    folder = tmp_path / "deep" / "out"
    folder.mkdir(parents=True)
    written = write_figures(image, explain(segmenter, image), folder)
    assert len(written) == 2 + 2, "the overlay, the prototypes and two assemblies"
    for path in written:
        assert path.parent == folder and path.exists()


def test_networks_without_prototypes_are_refused(tmp_path, image):
    segmenter = Segmenter(weights=weights_of(tmp_path, mask_branch="none"), backend="torch")
    with pytest.raises(ValueError, match="mask_branch='none'"):
        explain(segmenter, image)
