"""Weight files that are refused, and why."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from yolact_ros.network import (
    WeightsError,
    build,
    config_of_file,
    load_network,
    load_weights,
    official_name,
    save_weights,
)
from yolact_ros.network.weights import read_state


def official_state(net) -> dict[str, torch.Tensor]:
    return {official_name(name): value for name, value in net.state_dict().items()}


@pytest.fixture
def assert_refused(small_net, tmp_path):
    """A function: loading the file fails, says this, names the file, and changes nothing."""

    def check(path: Path, message: str) -> None:
        before = {name: value.clone() for name, value in small_net.state_dict().items()}
        with pytest.raises(WeightsError, match=message) as error:
            load_weights(small_net, path)
        assert str(path) in str(error.value)
        assert all(torch.equal(v, before[n]) for n, v in small_net.state_dict().items())

    return check


# Files that do not fit


def test_another_number_of_classes(small_config, small_net, tmp_path):
    other = build(small_config.replace(class_names=tuple("abcdefg")))
    with pytest.raises(WeightsError, match="for 7 classes, the model has 3") as error:
        load_weights(small_net, other.state_dict())
    assert "of a wrong shape: head.classes.weight" in str(error.value)


@pytest.mark.parametrize(
    "model, hint",
    [
        ("yolact_resnet50", "yolact_resnet50 "),
        ("yolact_im700", "yolact_base "),  # the same shapes
        ("yolact_plus_base", "yolact_plus_base "),
        ("yolact_resnet50_pascal", "yolact_resnet50_pascal "),
        ("yolact_darknet53", "yolact_darknet53 "),
    ],
)
def test_another_models_weights(small_net, tmp_path, model, hint, official_shapes):
    path = tmp_path / "weights.pth"
    torch.save(official_shapes(model), path)
    with pytest.raises(WeightsError, match=f"They are weights for {hint}") as error:
        load_weights(small_net, path)
    text = str(error.value)
    assert "missing: " in text and "unexpected: " in text and "the model small" in text
    assert len(text) < 2000


def test_missing_and_unexpected_entries(small_net):
    state = dict(small_net.state_dict())
    state["head.boxed.bias"] = state.pop("head.boxes.bias")
    with pytest.raises(
        WeightsError, match=r"1 missing: head.boxes.bias; 1 unexpected: head.boxed.bias"
    ):
        load_weights(small_net, state)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(small_config, assert_refused, tmp_path, value):
    state = official_state(build(small_config))
    state["proto_net.4.bias"][3] = value
    torch.save(state, tmp_path / "weights.pth")
    assert_refused(tmp_path / "weights.pth", "not finite in protonet.before.2.bias")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(3, dtype=torch.bool),
        torch.empty(3, device="meta"),
    ],
    ids=["sparse", "complex", "bool", "meta"],
)
def test_tensors_of_other_kinds(assert_refused, tmp_path, tensor):
    torch.save({"semantic.bias": tensor}, tmp_path / "weights.pth")
    assert_refused(tmp_path / "weights.pth", "'semantic.bias'")


@pytest.mark.parametrize(
    "content",
    [7, None, [], {}, {"a": 1}, {1: torch.zeros(1)}, {"state_dict": {"a": [1]}}, torch.zeros(3)],
    ids=str,
)
def test_checkpoints_of_other_things(assert_refused, tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    assert_refused(tmp_path / "weights.pth", "not named tensors|not a state dict")


@pytest.mark.parametrize("state", [{}, {"a": 1}, {3: torch.zeros(1)}], ids=str)
def test_state_dicts_of_other_things(small_net, state):
    with pytest.raises(WeightsError, match="the state dict"):
        load_weights(small_net, state)


# Files that are no weights at all


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"Hello, I am a text file.\n" * 100, "is not a whole|was refused|is no weight file"),
        (b"PK\x03\x04", "is not a whole|was refused|is no weight file"),
        (b"\x80\x02", "is not a whole|was refused|is no weight file"),
        (bytes(range(256)) * 50, "is not a whole|was refused|is no weight file"),
        (b"{}", "is not a whole|was refused|is no weight file"),
    ],
)
def test_files_of_other_kinds(assert_refused, tmp_path, suffix, content, message):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert_refused(path, message)


def test_folders_and_nothing(assert_refused, tmp_path):
    assert_refused(tmp_path, "is not a file")
    assert_refused(tmp_path / "nowhere.pth", "there is no weight file .*nowhere.pth$")
    assert_refused(tmp_path / "yolact", "no weight file .*; published models are yolact_base, ")


@pytest.mark.parametrize(
    ("name", "beside"), [("last.ckpt", "weights.safetensors"), ("net.bin", "net.xml")]
)
def test_what_lies_beside_weights(tmp_path, name, beside):
    torch.save({"a": torch.zeros(3)}, tmp_path / name)
    assert config_of_file(tmp_path / name) is None
    (tmp_path / beside).touch()
    with pytest.raises(WeightsError, match=f"{name} is no weight file: give .*{beside} beside it"):
        config_of_file(tmp_path / name)


@pytest.mark.parametrize("content", [b"\xff\xd8\xff\xe0" * 9, b'{"images": 7}', bytes(99)])
def test_other_files_are_no_weights_of_an_unknown_model(tmp_path, content):
    path = tmp_path / "some.file"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"is no weight file: these are \.safetensors"):
        config_of_file(path)


def damaged(whole: bytes) -> list[bytes]:
    """The file cut at many lengths, and with single bytes changed in its first two kilobytes."""
    cut = [whole[:length] for length in range(1, len(whole), max(1, len(whole) // 60))]
    changed = [
        whole[:i] + bytes([whole[i] ^ flip]) + whole[i + 1 :]
        for i in range(0, min(2000, len(whole)), 13)
        for flip in (1, 0x40)
    ]
    return cut + changed


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_truncated_and_damaged_checkpoints(tmp_path, zipped):
    """Damage may go unnoticed in the values; whatever is noticed is a readable error."""
    path = tmp_path / "weights.pth"
    state = {"a.weight": torch.rand(30, 20), "b": torch.zeros(3), "c": torch.zeros(()).long()}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    refused = 0
    for content in damaged(whole):
        path.write_bytes(content)
        try:
            read_state(path)
        except WeightsError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert len(content) == len(whole), "a truncated file was accepted"
    assert refused > 60


def test_truncated_and_damaged_own_files(small_net, tmp_path):
    path = tmp_path / "own.safetensors"
    save_weights(small_net, path)
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for length in (1, 7, 8, 9, header // 2, header, header + 1000, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match="not a whole safetensors file"):
            load_network(path)
    for bad in (b"\xff" * 8, struct.pack("<Q", 1 << 40), struct.pack("<Q", header + 100_000)):
        path.write_bytes(bad + whole[8:])
        with pytest.raises(WeightsError, match="not a whole safetensors file"):
            load_network(path)


class Bomb:
    """Unpickled without care, it runs a command."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ""])
def test_code_in_files_does_not_run(assert_refused, small_net, tmp_path, zipped, suffix):
    mark, path = tmp_path / "ran", tmp_path / f"weights{suffix}"
    state = {**official_state(small_net), "extra": Bomb(mark)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert_refused(path, "was refused.* holds posix.system$|is not a whole")
    assert not mark.exists()
    with path.open("rb") as file:
        torch.load(file, weights_only=False)
    assert mark.exists(), "the bomb of this test does not work"


def test_configuration_is_json(small_net, tmp_path):
    """So that other programs can read what a file is for."""
    path = tmp_path / "own.safetensors"
    save_weights(small_net, path)
    with safetensors.safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["config"])
    assert config["class_names"] == ["cat", "dog", "person"]
