"""Traces a network to one graph of plain tensors, for other runtimes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolact_ros.detection import detect
from yolact_ros.detection.masks import make_masks
from yolact_ros.engine.runtimes.header import Header
from yolact_ros.network import Yolact, fold_batch_norm
from yolact_ros.network.anchors import make_anchors

INPUT = "images"


class _Graph(nn.Module):
    """Maps images [B, 3, S, S] to the outputs that the header names."""

    def __init__(self, net: Yolact, header: Header) -> None:
        super().__init__()
        self.net, self.settings = net, header.settings
        device = next(net.parameters()).device
        self.anchors = make_anchors(header.config).to(device)  # float32 in any precision

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        predictions = self.net(images)
        coefficients, prototypes = predictions.coefficients, predictions.prototypes
        outputs = [predictions.class_logits, predictions.box_offsets, coefficients, prototypes]
        if self.settings is not None:
            every = len(self.anchors)
            found = detect(predictions, self.anchors, self.settings, candidates=every)
            counts = found.valid.sum(dim=1)
            outputs = [found.boxes, found.scores, found.class_ids, counts]
            outputs += [found.coefficients, prototypes]
            if self.net.mask_iou is not None:
                grids = make_masks(found, prototypes, self.net.mask_iou)
                assert grids is not None
                outputs.append(grids.scores)
        return tuple(x for x in outputs if x is not None)


def trace(net: Yolact, header: Header) -> torch.export.ExportedProgram:
    """Trace the network that `header` describes, with batch norm folded.

    The graph takes batches of any size, on the network's device and in its data type.
    """
    net = fold_batch_norm(net).requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.ReLU | nn.ReLU6 | nn.LeakyReLU):
            module.inplace = False  # graphs are functional; the rewrite would take seconds
    if net.mask_iou is not None:
        # Its input has one channel. Inductor miscompiles that convolution with weights that are
        # channels-last (PyTorch 2.15).
        weight = next(net.mask_iou.parameters())
        weight.data = weight.data.clone(memory_format=torch.contiguous_format)
    size = net.config.image_size
    images = next(net.parameters()).new_zeros(2, 3, size, size)
    images = images.contiguous(memory_format=torch.channels_last)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    with torch.no_grad():
        return torch.export.export(
            _Graph(net, header).eval(), (images,), dynamic_shapes=shapes, strict=False
        )
