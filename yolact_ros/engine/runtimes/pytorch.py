"""The network in eager PyTorch."""

from __future__ import annotations

import torch

from yolact_ros.engine.runtimes.header import Header
from yolact_ros.engine.runtimes.runtime import Runtime
from yolact_ros.network import Yolact, fold_batch_norm
from yolact_ros.network.fusing import fuse_convolutions
from yolact_ros.network.winograd import use_winograd


def run_network(
    net: Yolact, device: torch.device, dtype: torch.dtype, fast: bool = True
) -> Runtime:
    """Prepare a network to run on any device, with batch norm folded, in channels-last format.

    If `fast`, cuDNN fuses bias, shortcut and ReLU into the preceding convolutions on CUDA, and
    large 3x3 convolutions use Winograd's algorithm in float32 on a CPU.
    """
    anchors = net.anchors.to(device)  # stay in float32
    net = fold_batch_norm(net).requires_grad_(False).to(device, dtype)
    net = net.to(memory_format=torch.channels_last)
    if fast and device.type == "cuda":
        fuse_convolutions(net)
    if fast and device.type == "cpu" and dtype == torch.float32:
        use_winograd(net)
    return Runtime("torch", Header.of(net), net, device, dtype, anchors)
