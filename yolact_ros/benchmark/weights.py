"""Random weights with which a network has as much work as a trained one.

Freshly initialised weights do not: activations grow from block to block until all anchors or none
are confident, so that NMS works on everything or nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolact_ros.detection import DetectionSettings
from yolact_ros.network import NetworkConfig, Predictions, Yolact, build

CANDIDATES = 300
"""Number of anchors above the confidence threshold: enough for more than `top_k` instances."""
_LOGITS, _OFFSETS, _COEFFICIENTS = 3.0, 0.5, 0.5
"""Standard deviations of class logits, box offsets and mask coefficients."""
_SHIFT, _SHIFT_VARIATION = 1.0, 0.25
"""Offsets of deformable convolutions in pixels: the standard deviations of the constant part and of
the spatial variation. More of the latter would amplify rounding errors from layer to layer."""


@torch.no_grad()
def random_network(config: NetworkConfig, image: Tensor) -> Yolact:
    """Build a network with random weights that finds `top_k` instances in `image`.

    `image` [1, 3, S, S] is preprocessed. Batch norm gets the statistics of the image, and the
    background logit is shifted so that `CANDIDATES` anchors pass the confidence threshold.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build(config)
        for name, module in net.named_modules():
            if name.endswith(".offsets") and isinstance(module, nn.Conv2d):
                assert module.bias is not None
                nn.init.normal_(
                    module.weight, std=_SHIFT_VARIATION / module.weight[0].numel() ** 0.5
                )
                nn.init.normal_(module.bias, std=_SHIFT)
    adopt_statistics(net.backbone, image)
    predictions = net(image)
    _scale(net.head.classes, predictions.class_logits, _LOGITS)
    _scale(net.head.boxes, predictions.box_offsets, _OFFSETS)
    if net.head.coefficients is not None and predictions.coefficients is not None:
        _scale(net.head.coefficients, predictions.coefficients, _COEFFICIENTS)
    assert net.head.classes.bias is not None
    background = net.head.classes.bias.view(-1, config.num_classes + 1)[:, 0]
    background += _background(net(image))
    return net


def adopt_statistics(net: nn.Module, image: Tensor) -> None:
    """Set the statistics of every batch norm of `net` to those for `image`."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    net(image)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _scale(conv: nn.Conv2d, outputs: Tensor, spread: float) -> None:
    """Scale the weights of `conv`, whose bias is zero, to an output standard deviation `spread`."""
    conv.weight *= spread / outputs.float().std().clamp(min=1e-6)


def _background(predictions: Predictions) -> float:
    """Return the shift of the background logit with which `CANDIDATES` anchors pass the threshold.

    An anchor passes if exp(best) / (others + exp(background)) > threshold, where `best` is its
    largest logit of a class and `others` the sum of all their exponentials.
    """
    threshold = DetectionSettings().confidence_threshold
    logits = predictions.class_logits[0].double()
    room = logits[:, 1:].amax(dim=1).exp() / threshold - logits[:, 1:].exp().sum(dim=1)
    limits = room.clamp(min=1e-30).log() - logits[:, 0]
    return float(limits.topk(min(CANDIDATES + 1, len(limits))).values[-1])
