"""Folds batch norm into the preceding convolutions: fewer passes over memory for inference."""

from __future__ import annotations

import copy
import itertools

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from yolact_ros.network.deformable import DeformableConv2d
from yolact_ros.network.yolact import Yolact


def fold_batch_norm(net: Yolact) -> Yolact:
    """Return a copy of `net`, for inference only, with batch norm folded into its convolutions.

    Its outputs are the same up to rounding. Its parameters differ, so load weights first. Raises
    ValueError in training mode, where batch norm depends on the batch.
    """
    if any(module.training for module in net.modules()):
        raise ValueError("batch norm can be folded in evaluation mode only: call net.eval() before")
    net = copy.deepcopy(net)
    for parent in list(net.modules()):
        # In this network every batch norm is registered right after its convolution.
        for (_, conv), (name, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(norm, nn.BatchNorm2d):
                assert isinstance(conv, nn.Conv2d | DeformableConv2d), name
                _fold(conv, norm)
                setattr(parent, name, nn.Identity().eval())
    return net


def _fold(conv: nn.Conv2d | DeformableConv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
