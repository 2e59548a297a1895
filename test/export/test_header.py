"""What a file says of itself is compared with its graph."""

from __future__ import annotations

import json

import pytest

from yolact_ros.engine import Segmenter
from yolact_ros.network import WeightsError


def with_metadata(whole, path, edit):
    """A copy of an exported file whose metadata `edit` changes."""
    if path.suffix == ".onnx":
        onnx = pytest.importorskip("onnx")
        model = onnx.load(str(whole))
        values = {each.key: each.value for each in model.metadata_props}
        onnx.helper.set_model_props(model, edit(values))
        onnx.save(model, str(path))
    else:
        openvino = pytest.importorskip("openvino")
        model = openvino.Core().read_model(whole)
        values = {k: str(v) for k, v in model.get_rt_info(["yolact_ros"]).value.items()}
        for key, value in edit(values).items():
            model.set_rt_info(value, ["yolact_ros", key])
        openvino.save_model(model, path, compress_to_fp16=False)
    return path


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_size": 128}, r"images.* 128"),
        ({"anchor_octaves": 1}, r"class_logits .*, \d+, 4\]; it must be \[any, 388, 4\]"),
        ({"class_names": ["cat"]}, r"class_logits .*, 4\]; it must be \[any, 776, 2\]"),
        ({"num_prototypes": 16}, r"coefficients .*, 32\]; it must be \[any, 776, 16\]"),
        ({"mask_branch": "none"}, r"outputs class_logits, .*prototypes; .* box_offsets, as its"),
    ],
    ids=str,
)
def test_a_header_that_does_not_fit_its_graph(exported, tmp_path, ending, changes, message):
    def edit(values):
        return values | {"config": json.dumps(json.loads(values["config"]) | changes)}

    path = with_metadata(exported("small", ending, False), tmp_path / f"net{ending}", edit)
    with pytest.raises(WeightsError, match=rf"net{ending} (has|takes) .*{message}"):
        Segmenter(weights=path)


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
@pytest.mark.parametrize("text", ["[" * 100_000, "5", '{"more": 1}'], ids=len)
@pytest.mark.parametrize("key", ["config", "detection"])
def test_bad_metadata(exported, tmp_path, ending, key, text):
    whole = exported("small", ending, False)
    path = with_metadata(whole, tmp_path / f"net{ending}", lambda values: values | {key: text})
    with pytest.raises(WeightsError, match=rf"net{ending} has bad metadata inside"):
        Segmenter(weights=path)
