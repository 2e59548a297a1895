"""Every choice that makes a network: it is built, runs, and is what the papers say."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from yolact_ros.detection import DetectionSettings, detect, make_instances
from yolact_ros.network import CONFIGS, EMBEDDED, PUBLISHED, NetworkConfig, build, config_of
from yolact_ros.network.anchors import feature_sizes, make_anchors
from yolact_ros.network.deformable import DeformableConv2d

SMALL = NetworkConfig(
    name="small",
    class_names=("cat", "dog", "person"),
    backbone="resnet50",
    image_size=64,
    fpn_channels=16,
)


LIGHT = SMALL.replace(backbone="efficientnet_lite0")
"""Where the backbone does not matter: a ResNet takes long to make."""


def multiply_adds(config: NetworkConfig) -> int:
    """Multiplications and additions of one image's way through the network, in pairs."""
    with torch.device("meta"):
        net, images = build(config), torch.zeros(1, 3, config.image_size, config.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(images)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "resnet50"},
        {"backbone": "resnet101"},
        {"backbone": "darknet53"},
        {"backbone": "efficientnet_lite0"},
        {"num_prototypes": 8},
        {"num_prototypes": 256},
        {"anchor_ratios": (1.0,)},
        {"anchor_ratios": (1.0, 0.5, 2.0, 1 / 3, 3.0)},
        {"anchor_octaves": 2},
        {"anchor_octaves": 3},
        {"square_anchors": True},
        {"anchor_octaves": 3, "image_size": 249, "mask_rescoring": True},
        {"mask_branch": "fc"},
        {"mask_branch": "none"},
        {"image_size": 65},
        {"image_size": 127},
        {"fpn_channels": 8},
        {"class_names": ("one",)},
        *(
            {"dcn_variant": variant, "dcn_version": version}
            for variant in ("all", "last10", "last13", "interval3", "interval4")
            for version in (1, 2)
        ),
        {"backbone": "resnet101", "dcn_variant": "last13"},
    ],
    ids=str,
)
def test_every_choice_runs_from_image_to_instances(changes):
    torch.manual_seed(0)
    net = build(SMALL if {"backbone", "dcn_variant"} & changes.keys() else LIGHT, **changes)
    config, size = net.config, net.config.image_size
    with torch.no_grad():
        p = net(torch.randn(2, 3, size, size))
        count = len(net.anchors)
        assert p.class_logits.shape == (2, count, config.num_classes + 1)
        assert p.box_offsets.shape == (2, count, 4)
        assert p.semantic_logits is None
        p3 = feature_sizes(size)[0]
        if config.mask_branch == "prototypes":
            assert p.coefficients.shape == (2, count, config.num_prototypes)
            assert p.coefficients.abs().max() <= 1
            assert p.prototypes.shape == (2, config.num_prototypes, 2 * p3, 2 * p3)
            assert p.prototypes.min() >= 0
        elif config.mask_branch == "fc":
            assert p.coefficients.shape == (2, count, 256) and p.prototypes is None
        else:
            assert p.coefficients is None and p.prototypes is None
        detections = detect(p, net.anchors, DetectionSettings(top_k=5))
        sizes = [(30, 40), (64, 64)]
        images = make_instances(detections, p.prototypes, net.mask_iou, sizes, config.class_names)
    for instances, image_size in zip(images, sizes, strict=True):
        assert len(instances) == 5
        assert instances.scores.isfinite().all() and instances.boxes.isfinite().all()
        if config.mask_branch != "none":
            assert instances.masks.shape == (5, *image_size)
    net.train()
    assert net(torch.randn(2, 3, size, size)).semantic_logits.shape == (
        2,
        config.num_classes,
        p3,
        p3,
    )


@pytest.mark.parametrize(
    "backbone, variant, count",
    [
        ("resnet50", "none", 0),
        ("resnet50", "all", 13),
        ("resnet50", "last10", 10),
        ("resnet50", "last13", 13),
        ("resnet101", "all", 30),  # YOLACT++, table 7
        ("resnet101", "last10", 10),
        ("resnet101", "last13", 13),
        ("resnet101", "interval3", 11),
        ("resnet101", "interval4", 8),
    ],
)
def test_how_many_convolutions_are_deformable(backbone, variant, count):
    with torch.device("meta"):
        net = build(SMALL, backbone=backbone, dcn_variant=variant)
    names = [n for n, m in net.named_modules() if isinstance(m, DeformableConv2d)]
    assert len(names) == count
    assert all(name.startswith("backbone.layers.") and name.endswith(".conv2") for name in names)
    assert not any(name.startswith("backbone.layers.0.") for name in names), "C2 has none"
    if variant.startswith("last"):  # the last ones have none after them that is plain
        blocks = [
            n for n, m in net.named_modules() if n.endswith(".conv2") and n.startswith("backbone")
        ]
        assert names == blocks[-count:]


@pytest.mark.parametrize(
    "model, billions",  # of the published implementation at its own input size
    [
        ("yolact_resnet50", 59),
        ("yolact_darknet53", 77),
        ("yolact_base", 82),
    ],
)
def test_multiply_adds_of_published_models(model, billions):
    assert multiply_adds(config_of(model)) == pytest.approx(billions * 1e9, rel=0.02)


def test_boxes_only_computes_less():
    base = config_of("yolact_resnet50")
    boxes = multiply_adds(base.replace(mask_branch="none"))
    assert boxes < 0.8 * multiply_adds(base)
    assert boxes < multiply_adds(base.replace(mask_branch="fc"))
    with torch.device("meta"):
        net = build(base, mask_branch="none")
    assert net.protonet is None and net.head.coefficients is None


def test_fewer_prototypes_and_anchors_compute_less():
    base = config_of("yolact_resnet50")
    counts = [multiply_adds(base.replace(num_prototypes=k)) for k in (8, 32, 256)]
    assert counts == sorted(set(counts))
    assert multiply_adds(base.replace(anchor_octaves=3)) > multiply_adds(base)


def test_embedded_network_is_small():
    with torch.device("meta"):
        net = build(EMBEDDED)
    assert sum(p.numel() for p in net.parameters()) <= 5.05e6
    assert multiply_adds(EMBEDDED) < 7e9


def test_depthwise_convolutions_learn_the_same_in_bfloat16():
    torch.manual_seed(0)
    backbone = build(SMALL, backbone="efficientnet_lite0").backbone
    depthwise = [m for m in backbone.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(depthwise) == 16
    x = torch.rand(2, depthwise[0].in_channels, 9, 9)

    def gradients(enabled: bool) -> tuple[Tensor, Tensor]:
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = depthwise[0](inputs.bfloat16() if enabled else inputs)
        assert y.dtype == (torch.bfloat16 if enabled else torch.float32)
        return torch.autograd.grad(y.float().square().sum(), (inputs, depthwise[0].weight))

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * expected.abs().max())


def test_freshly_built_networks_are_in_evaluation_mode():
    net = build(SMALL)
    assert not any(module.training for module in net.modules())
    assert "anchors" not in net.state_dict()


def test_input_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 64, 65\) do not fit small.*\[B, 3, 64, 64\]"):
        build(SMALL)(torch.zeros(1, 3, 64, 65))


# Anchors


@pytest.mark.parametrize("backbone", ["resnet50", "darknet53", "efficientnet_lite0"])
def test_anchors_agree_with_the_head_at_any_size(backbone):
    with torch.device("meta"):  # shapes alone
        net = build(SMALL, backbone=backbone)
        for size in (*range(64, 74), 95, 97, 129, 137, 257, 551):
            pyramid = net.fpn(net.backbone(torch.zeros(1, 3, size, size)))
            offsets = net.head(pyramid)[1]
            assert tuple(level.shape[-1] for level in pyramid) == feature_sizes(size)
            assert offsets.shape[1] == len(make_anchors(SMALL.replace(image_size=size)))


@pytest.mark.parametrize(
    "size, levels", [(550, (69, 35, 18, 9, 5)), (400, (50, 25, 13, 7, 4)), (64, (8, 4, 2, 1, 1))]
)
def test_feature_sizes(size, levels):
    assert feature_sizes(size) == levels


def test_anchors_in_pixels():
    """The first location of P3 at 550 pixels: three octaves of three ratios of one area each."""
    config = config_of("yolact_plus_base")
    anchors = make_anchors(config).view(-1, 9, 4) * 550
    first, second = anchors[0], anchors[1]
    assert first[:, :2].sub(550 / 69 / 2).abs().max() < 1e-3
    assert second[0, 0] - first[0, 0] == pytest.approx(550 / 69, rel=1e-4)
    assert second[0, 1] == first[0, 1], "columns come before rows"
    sides = [24 * 2 ** (octave / 3) for octave in range(3)]
    expected = [
        (side * ratio**0.5, side / ratio**0.5) for side in sides for ratio in (1.0, 0.5, 2.0)
    ]
    torch.testing.assert_close(first[:, 2:], torch.tensor(expected), rtol=1e-4, atol=1e-3)


def test_square_anchors_are_as_wide_as_the_others():
    square = make_anchors(SMALL.replace(square_anchors=True))
    other = make_anchors(SMALL)
    assert torch.equal(square[:, :3], other[:, :3])
    assert torch.equal(square[:, 2], square[:, 3])


def test_anchor_scales_follow_the_image_size():
    widths = {
        size: make_anchors(config_of("yolact_base").replace(image_size=size))[0, 2] * size
        for size in (400, 550, 700)
    }
    assert {s: round(float(w)) for s, w in widths.items()} == {400: 17, 550: 24, 700: 30}


# Configurations


def test_names():
    assert list(PUBLISHED) == [
        "yolact_base",
        "yolact_resnet50",
        "yolact_darknet53",
        "yolact_im400",
        "yolact_im700",
        "yolact_resnet50_pascal",
        "yolact_plus_base",
        "yolact_plus_resnet50",
    ]
    with pytest.raises(ValueError, match="no model 'yolact'; the models are yolact_base, "):
        config_of("yolact")
    assert len(config_of("yolact_base").class_names) == 80
    assert len(config_of("yolact_resnet50_pascal").class_names) == 20


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_survive_as_plain_values(name):
    config = config_of(name)
    assert NetworkConfig.from_dict(config.to_dict()) == config


def test_lists_become_tuples():
    """YAML and JSON know no tuples."""
    config = NetworkConfig(class_names=["a", "b"], anchor_ratios=[1.0])
    assert config == NetworkConfig(class_names=("a", "b"), anchor_ratios=(1.0,))
    assert hash(config)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"backbone": "vgg"}, "backbone='vgg' is not allowed: it must be one of 'resnet50'"),
        ({"backbone": None}, "backbone=None"),
        ({"dcn_variant": "first3"}, "dcn_variant='first3'.*'interval4'"),
        ({"dcn_version": 3}, "dcn_version=3 is not allowed: it must be 1 or 2"),
        ({"mask_branch": "both"}, "mask_branch='both'"),
        ({"image_size": 63}, "image_size=63 .* 64 to 2048 pixels"),
        ({"image_size": 550.0}, "image_size=550.0 .* whole number"),
        ({"image_size": "550"}, "image_size='550'"),
        ({"num_prototypes": 7}, "num_prototypes=7 .* 8 to 256"),
        ({"num_prototypes": 257}, "num_prototypes=257"),
        ({"anchor_octaves": 0}, "anchor_octaves=0 .* 1 to 3"),
        ({"anchor_ratios": ()}, "anchor_ratios"),
        ({"anchor_ratios": (1.0, -2.0)}, "anchor_ratios"),
        ({"anchor_ratios": (1.0, float("nan"))}, "anchor_ratios"),
        ({"anchor_scales": (24, 48, 96, 192)}, "anchor_scales.*five"),
        ({"anchor_scales": (1, 48, 96, 192, 384)}, "anchor_scales.*a pixel or more"),
        ({"fpn_channels": 4}, "fpn_channels=4"),
        ({"class_names": ()}, "class_names"),
        ({"class_names": "person"}, "class_names='person'"),
        ({"class_names": (1, 2)}, "class_names"),
        ({"class_names": ("\ud83d",)}, "class_names"),
        ({"square_anchors": "no"}, "square_anchors='no'"),
        ({"backbone": "darknet53", "dcn_variant": "all"}, "dcn_variant='all' needs a ResNet"),
        ({"backbone": "efficientnet_lite0", "dcn_variant": "last10"}, "needs a ResNet"),
        (
            {"mask_rescoring": True, "mask_branch": "fc", "image_size": 550},
            "does not go with mask_branch='fc'",
        ),
        ({"mask_rescoring": True, "mask_branch": "none"}, "does not go with mask_branch='none'"),
        ({"mask_rescoring": True, "image_size": 248}, "image_size of 249 or more, not 248"),
    ],
    ids=str,
)
def test_refused_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        SMALL.replace(**changes)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match=r"unknown network settings \['colour'\]; known are"):
        NetworkConfig.from_dict({"colour": 1})


def test_every_pair_of_choices_is_built_or_refused_with_a_reason():
    choices = {
        "backbone": ("resnet50", "darknet53", "efficientnet_lite0"),
        "dcn_variant": ("none", "interval4"),
        "mask_branch": ("prototypes", "fc", "none"),
        "mask_rescoring": (False, True),
        "image_size": (64, 300),
    }
    for values in itertools.product(*choices.values()):
        changes = dict(zip(choices, values, strict=True))
        allowed = (changes["dcn_variant"] == "none" or changes["backbone"] == "resnet50") and (
            not changes["mask_rescoring"]
            or (changes["mask_branch"] == "prototypes" and changes["image_size"] == 300)
        )
        if allowed:
            SMALL.replace(**changes)
        else:
            with pytest.raises(ValueError, match=r"needs|does not go"):
                SMALL.replace(**changes)
