"""The network (YOLACT, figure 2) with the additions of YOLACT++."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolact_ros.network.anchors import make_anchors
from yolact_ros.network.backbones import build_backbone
from yolact_ros.network.config import NetworkConfig, config_of
from yolact_ros.network.fusing import convolve_relu
from yolact_ros.network.predictions import Predictions


class FeaturePyramid(nn.Module):
    """C3, C4, C5 in; P3 to P7 out, all with the same number of channels."""

    def __init__(self, inputs: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        # From C5 to C3, as in the official checkpoints.
        self.lateral = nn.ModuleList(nn.Conv2d(n, channels, 1) for n in reversed(inputs))
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in inputs)
        self.downsample = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(2)
        )

    def forward(self, features: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
        pyramid: list[Tensor] = []
        merged: Tensor | None = None
        for c, lateral, output in zip(reversed(features), self.lateral, self.output, strict=True):
            x = lateral(c)
            merged = x if merged is None else x + _resize(merged, x.shape[-2:])
            pyramid.insert(0, convolve_relu(merged, output))
        for downsample in self.downsample:
            pyramid.append(downsample(pyramid[-1]))
        return pyramid


def _resize(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class ProtoNet(nn.Module):
    """P3 [B, c, H, W] in; non-negative prototypes [B, k, 2H, 2W] out (section 3.1)."""

    def __init__(self, channels: int, num_prototypes: int) -> None:
        super().__init__()
        self.before = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.after = nn.Conv2d(channels, channels, 3, padding=1)
        self.prototypes = nn.Conv2d(channels, num_prototypes, 1)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.before:
            x = convolve_relu(x, conv)
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return convolve_relu(convolve_relu(x, self.after), self.prototypes)


class PredictionHead(nn.Module):
    """Predicts logits, box offsets and mask coefficients of all anchors; shared by all levels."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        channels, anchors = config.fpn_channels, config.anchors_per_cell
        self.num_logits = config.num_classes + 1
        self.num_coefficients = config.num_coefficients
        self.bounded = config.mask_branch == "prototypes"
        self.shared = nn.Conv2d(channels, channels, 3, padding=1)
        self.boxes = nn.Conv2d(channels, anchors * 4, 3, padding=1)
        self.classes = nn.Conv2d(channels, anchors * self.num_logits, 3, padding=1)
        self.coefficients: nn.Conv2d | None = None
        if self.num_coefficients:
            self.coefficients = nn.Conv2d(channels, anchors * self.num_coefficients, 3, padding=1)

    def forward(self, pyramid: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return logits [B, P, C + 1], box offsets [B, P, 4], coefficients [B, P, k] or None."""
        shared = [convolve_relu(level, self.shared) for level in pyramid]
        logits = _per_anchor(self.classes, shared, self.num_logits)
        offsets = _per_anchor(self.boxes, shared, 4)
        if self.coefficients is None:
            return logits, offsets, None
        coefficients = _per_anchor(self.coefficients, shared, self.num_coefficients)
        return logits, offsets, coefficients.tanh() if self.bounded else coefficients


def _per_anchor(conv: nn.Conv2d, levels: list[Tensor], values: int) -> Tensor:
    """Apply `conv` to every level [B, c, H, W]; return [B, P, values] over all of them."""
    outputs = [conv(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, values) for x in levels]
    return torch.cat(outputs, dim=1)


class MaskIoUNet(nn.Module):
    """Predicts the IoU of a mask with the object, for each class (YOLACT++)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = (1, 8, 16, 32, 64, 128)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2) for a, b in itertools.pairwise(widths)
        )
        self.classes = nn.Conv2d(widths[-1], num_classes, 1)

    def forward(self, masks: Tensor) -> Tensor:
        """Map cropped masks [n, 1, Hp, Wp] in 0..1 to non-negative IoUs [n, C]."""
        x = masks.to(self.classes.weight.dtype)
        for conv in self.convs:
            x = convolve_relu(x, conv)
        return convolve_relu(x, self.classes).amax(dim=(2, 3))


class Yolact(nn.Module):
    """A whole network. Called on preprocessed images [B, 3, S, S], it returns `Predictions`.

    `anchors` [P, 4] are (cx, cy, w, h) relative to the image. `mask_iou` is None without mask
    re-scoring. Raises ValueError for an input of another size.
    """

    anchors: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config)
        self.fpn = FeaturePyramid(self.backbone.channels, config.fpn_channels)
        self.protonet: ProtoNet | None = None
        if config.mask_branch == "prototypes":
            self.protonet = ProtoNet(config.fpn_channels, config.num_prototypes)
        self.head = PredictionHead(config)
        self.semantic = nn.Conv2d(config.fpn_channels, config.num_classes, 1)
        self.mask_iou = MaskIoUNet(config.num_classes) if config.mask_rescoring else None
        self.register_buffer("anchors", make_anchors(config), persistent=False)
        _initialise(self)

    def forward(self, images: Tensor) -> Predictions:
        size = self.config.image_size
        if images.shape[1:] != (3, size, size):
            raise ValueError(
                f"images of shape {tuple(images.shape)} do not fit {self.config.name}: "
                f"it takes [B, 3, {size}, {size}]"
            )
        pyramid = self.fpn(self.backbone(images))
        logits, offsets, coefficients = self.head(pyramid)
        return Predictions(
            class_logits=logits,
            box_offsets=offsets,
            coefficients=coefficients,
            prototypes=None if self.protonet is None else self.protonet(pyramid[0]),
            semantic_logits=self.semantic(pyramid[0]) if self.training else None,
        )


def _initialise(net: Yolact) -> None:
    """Use He initialisation for the backbone (usually loaded from ImageNet), Xavier elsewhere."""
    for name, module in net.named_modules():
        if not isinstance(module, nn.Conv2d) or name.endswith(".offsets"):
            continue
        if name.startswith("backbone."):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        else:
            nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def build(model: str | NetworkConfig, **changes: object) -> Yolact:
    """Build a network with random weights, in evaluation mode.

    `model` is a configuration or the name of one; `changes` replace fields of it, for example
    `build("yolact_base", dcn_variant="interval3")`. Raises ValueError for an unknown name or an
    impossible configuration.
    """
    config = config_of(model) if isinstance(model, str) else model
    return Yolact(config.replace(**changes)).eval()
