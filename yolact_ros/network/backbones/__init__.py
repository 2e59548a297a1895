"""Backbones: image [B, 3, S, S] in, feature maps C3, C4 and C5 (strides 8, 16, 32) out."""

from __future__ import annotations

from yolact_ros.network.backbones.darknet import DarkNet
from yolact_ros.network.backbones.efficientnet_lite import EfficientNetLite
from yolact_ros.network.backbones.resnet import ResNet
from yolact_ros.network.config import NetworkConfig


def build_backbone(config: NetworkConfig) -> ResNet | DarkNet | EfficientNetLite:
    """Build the backbone of a configuration; its `channels` are those of C3, C4 and C5."""
    if config.backbone == "darknet53":
        return DarkNet(blocks=(1, 2, 8, 8, 4))
    if config.backbone == "efficientnet_lite0":
        return EfficientNetLite()
    blocks = (3, 4, 6, 3) if config.backbone == "resnet50" else (3, 4, 23, 3)
    return ResNet(blocks, config.dcn_variant, config.dcn_version)


__all__ = ["DarkNet", "EfficientNetLite", "ResNet", "build_backbone"]
