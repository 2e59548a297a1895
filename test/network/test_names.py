"""Parameter names and shapes are those of the official checkpoints."""

from __future__ import annotations

import json

import pytest
import torch

from yolact_ros.network import PUBLISHED, build, official_name
from yolact_ros.network.weights import own_name


def names_and_shapes(model: str) -> dict[str, list[int]]:
    with torch.device("meta"):
        state = build(model).state_dict()
    return {official_name(name): list(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_models_have_the_official_parameters(shared, model):
    schema = json.loads((shared / "reference" / f"{model}.schema.json").read_text())
    assert names_and_shapes(model) == schema


def test_without_the_reference_folder_one_model_is_checked(repository):
    schema = json.loads((repository / "test/reference/yolact_im400.schema.json").read_text())
    assert names_and_shapes("yolact_im400") == schema


@pytest.mark.parametrize("model", PUBLISHED)
def test_names_translate_back(model):
    with torch.device("meta"):
        names = list(build(model).state_dict())
    assert [own_name(official_name(name)) for name in names] == names
    assert [own_name(name) for name in names] == names


@pytest.mark.parametrize(
    "model, entries, millions",  # of the published implementation
    [
        ("yolact_resnet50", 354, 31),
        ("yolact_darknet53", None, 48),
        ("yolact_base", None, 50),
        ("yolact_plus_resnet50", None, 34),
        ("yolact_plus_base", 705, 53),
    ],
)
def test_number_of_parameters(model, entries, millions):
    with torch.device("meta"):
        net = build(model)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(millions * 1e6, rel=0.02)
    assert entries in (None, len(net.state_dict()))
