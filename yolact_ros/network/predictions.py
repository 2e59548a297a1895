"""The network's raw outputs for a batch of images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Predictions:
    """Raw outputs for B images, P anchors, C classes and k prototypes."""

    class_logits: Tensor
    """[B, P, C + 1], before softmax; column 0 is background."""
    box_offsets: Tensor
    """[B, P, 4], relative to the anchors; see `detection.boxes.decode`."""
    coefficients: Tensor | None
    """[B, P, k] mask coefficients in -1..1, or [B, P, 256] logits of fc masks, or None."""
    prototypes: Tensor | None
    """[B, k, Hp, Wp], non-negative; None unless masks are made from prototypes."""
    semantic_logits: Tensor | None = None
    """[B, C, Hs, Ws] for the semantic segmentation loss; only in training mode."""
