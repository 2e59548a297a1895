"""Weight files: official ones and own ones."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from yolact_ros.network import (
    PUBLISHED,
    NetworkConfig,
    WeightsError,
    build,
    config_of_file,
    load_network,
    load_weights,
    official_name,
    read_config,
    save_weights,
)


def official_state(net) -> dict[str, torch.Tensor]:
    return {official_name(name): value for name, value in net.state_dict().items()}


def same_weights(a, b) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


# Official checkpoints


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "DataParallel"])
def test_official_checkpoint(small_config, small_net, tmp_path, zipped, prefix):
    path = tmp_path / "weights.pth"
    state = {prefix + name: value for name, value in official_state(small_net).items()}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    net = build(small_config)
    assert not same_weights(net, small_net)
    load_weights(net, path)
    assert same_weights(net, small_net)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_state_dict_inside_a_training_checkpoint(small_config, small_net, tmp_path, key):
    path = tmp_path / "weights.pth"
    torch.save({key: official_state(small_net), "epoch": 3}, path)
    net = build(small_config)
    load_weights(net, path)
    assert same_weights(net, small_net)


def test_what_old_releases_left_in_their_checkpoints(small_config, small_net):
    state = official_state(small_net)
    for leftover in (
        "backbone.layer1.0.conv1.weight",
        "fpn.downsample_layers.2.weight",
        "fpn.downsample_layers.2.bias",
    ):
        state[leftover] = torch.zeros(3)
    del state["backbone._preconv.1.num_batches_tracked"]  # older than the counter
    net = build(small_config)
    load_weights(net, state)
    assert same_weights(net, small_net)


def test_half_precision(small_config, small_net, tmp_path):
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in official_state(small_net).items()
    }
    torch.save(state, tmp_path / "weights.pth")
    net = build(small_config)
    load_weights(net, tmp_path / "weights.pth")
    for name, value in net.state_dict().items():
        assert value.dtype == small_net.state_dict()[name].dtype
        torch.testing.assert_close(value, small_net.state_dict()[name], rtol=1e-3, atol=1e-6)


def test_names_may_be_our_own(small_config, small_net, tmp_path):
    torch.save(small_net.state_dict(), tmp_path / "weights.pth")  # an OrderedDict with attributes
    for source in (small_net.state_dict(), tmp_path / "weights.pth", str(tmp_path / "weights.pth")):
        net = build(small_config)
        load_weights(net, source)
        assert same_weights(net, small_net)


@pytest.mark.parametrize(
    "file, model",
    [
        *((f"{name}_54_800000.pth", name) for name in PUBLISHED),
        ("yolact_base_10_32100.pth", "yolact_base"),
        ("yolact_im700_12_99_interrupt.pth", "yolact_im700"),
        ("yolact_base.pth", None),
        ("mine_1_2.pth", None),
        ("yolact_base_54_800000_of_mine_for.pth", "yolact_base"),
    ],
)
def test_official_file_names_say_the_model(tmp_path, file, model):
    (tmp_path / file).write_bytes(b"PK\x03\x04")
    config = config_of_file(tmp_path / file)
    assert config == (None if model is None else PUBLISHED[model])


def test_network_of_an_official_file(tmp_path, official_shapes):
    path = tmp_path / "yolact_resnet50_54_800000.pth"
    torch.save(official_shapes("yolact_resnet50"), path)
    net = load_network(path)
    assert net.config == PUBLISHED["yolact_resnet50"] and not net.training
    with pytest.raises(WeightsError, match=r"mine.pth does not say which model it is for"):
        load_network(path.rename(tmp_path / "mine.pth"))


# Own files


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_own_file_is_all_that_a_network_needs(small_config, small_net, tmp_path, dtype):
    path = tmp_path / "own.safetensors"
    save_weights(small_net, path, dtype)
    assert read_config(path) == config_of_file(path) == small_config
    net = load_network(path)
    assert net.config == small_config and not net.training
    if dtype is None:
        assert same_weights(net, small_net)
    else:
        x = torch.rand(1, 3, 96, 96)
        with torch.no_grad():
            torch.testing.assert_close(
                net(x).class_logits, small_net(x).class_logits, rtol=0.01, atol=0.05
            )
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_every_setting_survives_in_a_file(tmp_path):
    config = NetworkConfig(
        name="all different",
        class_names=("a", "b with spaces", "ç"),
        backbone="resnet50",
        image_size=257,
        fpn_channels=8,
        anchor_scales=(30.0, 60, 120, 240, 480.5),
        anchor_ratios=(1.0, 0.5, 2.0, 3.0, 1 / 3),
        anchor_octaves=3,
        square_anchors=True,
        dcn_variant="last10",
        dcn_version=1,
        num_prototypes=9,
        mask_rescoring=True,
    )
    save_weights(build(config), tmp_path / "own.safetensors")
    assert load_network(tmp_path / "own.safetensors").config == config


def test_whoever_may_read_other_files_may_read_own_ones(small_net, tmp_path):
    other = tmp_path / "other"
    other.touch()
    save_weights(small_net, tmp_path / "own.safetensors")
    assert (tmp_path / "own.safetensors").stat().st_mode == other.stat().st_mode


def test_own_files_have_their_suffix(small_net, tmp_path):
    with pytest.raises(ValueError, match="safetensors"):
        save_weights(small_net, tmp_path / "own.pth")


@pytest.mark.parametrize(
    "config, message",
    [
        ("null", "NoneType"),
        ("[]", "list"),
        ("{", "bad configuration"),
        ("[" * 100_000, "bad configuration"),
        ('{"image_size": 5}', "image_size=5 is not allowed"),
        ('{"image_size": 550.5}', "image_size=550.5 is not allowed"),
        ('{"class_names": "person"}', "class_names='person' is not allowed"),
        ('{"backbone": []}', "backbone"),
        ('{"anchor_scales": [1, 2, 3, 4, NaN]}', "anchor_scales"),
        ('{"colour": "red"}', r"unknown network settings \['colour'\]"),
    ],
)
def test_bad_configuration_in_a_file(tmp_path, config, message):
    path = tmp_path / "own.safetensors"
    metadata = {"format": "yolact_ros 1", "config": config}
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata)
    with pytest.raises(WeightsError, match=message) as error:
        load_network(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "yolact_ros 1"}])
def test_foreign_safetensors_have_no_configuration(tmp_path, metadata):
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata)
    with pytest.raises(WeightsError, match="configuration inside"):
        load_network(path)


def test_foreign_safetensors_load_into_a_named_model(small_config, small_net, tmp_path):
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file(official_state(small_net), path)
    net = build(small_config)
    load_weights(net, path)
    assert same_weights(net, small_net)
