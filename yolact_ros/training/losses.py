"""The losses of YOLACT (sections 3.3, 4 and 5) and of YOLACT++'s mask re-scoring, as published.

Class, box, mask and mask IoU losses are summed over the positive anchors and divided by the number
of positive anchors in the whole batch; the semantic loss is divided by the number of images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolact_ros.detection import boxes
from yolact_ros.detection.masks import assemble, crop, crop_rectangles
from yolact_ros.network import Predictions, Yolact
from yolact_ros.training.matching import BACKGROUND, Matching, MatchSettings, match
from yolact_ros.training.ranges import check_ranges
from yolact_ros.training.targets import Target


@dataclass(frozen=True)
class LossSettings:
    """Weights and rules of the losses; the defaults are the published ones."""

    matching: MatchSettings = field(default_factory=MatchSettings)
    class_weight: float = 1.0
    """Weight of the class loss (softmax cross entropy)."""
    box_weight: float = 1.5
    """Weight of the box loss (smooth L1)."""
    mask_weight: float = 6.125
    """Weight of the mask loss (binary cross entropy)."""
    fc_mask_weight: float = 30.625
    """Weight of the mask loss of the fc-mask baseline, instead of `mask_weight`."""
    semantic_weight: float = 1.0
    """Weight of the semantic segmentation loss (binary cross entropy)."""
    mask_iou_weight: float = 25.0
    """Weight of the mask IoU loss (smooth L1)."""
    negatives_per_positive: int = 3
    """Background anchors in the class loss for each positive one, the hardest first (OHEM)."""
    negatives_without_objects: int = 0
    """Background anchors in the class loss of an image without any object. 0, as published, means
    that such images contribute only the semantic loss."""
    masks_per_image: int | None = None
    """Positive anchors in the mask loss of one image, drawn at random if there are more. None means
    100, or 300 for inputs of 700 pixels or more."""
    smallest_rescored_mask: int = 25
    """Masks of at most this many prototype pixels are excluded from the mask IoU loss."""

    def __post_init__(self) -> None:
        check_ranges(self, masks_per_image=(1, math.inf))
        numbers = [each.name for each in dataclasses.fields(self) if each.name != "matching"]
        check_ranges(self, **dict.fromkeys(numbers, (0, math.inf)))

    def masks_at(self, image_size: int) -> int:
        """`masks_per_image` for inputs of `image_size` pixels."""
        if self.masks_per_image is not None:
            return self.masks_per_image
        return 300 if image_size >= 700 else 100


@dataclass(frozen=True)
class Losses:
    """Scalar losses, weighted and normalised. None: the network has no such part."""

    classes: Tensor
    boxes: Tensor
    masks: Tensor | None = None
    semantic: Tensor | None = None
    mask_iou: Tensor | None = None

    def items(self) -> dict[str, Tensor]:
        """The losses that exist, by name."""
        return {name: loss for name, loss in vars(self).items() if loss is not None}

    @property
    def total(self) -> Tensor:
        """The sum of all losses, which is minimised."""
        return torch.stack(list(self.items().values())).sum()


def compute_losses(
    net: Yolact,
    predictions: Predictions,
    targets: Sequence[Target],
    settings: LossSettings = LossSettings(),
    normaliser: Callable[[Tensor], Tensor] = lambda positives: positives.clamp(min=1),
) -> Losses:
    """Compute the losses of one batch, in float32 whatever the precision of the predictions.

    `predictions` are those of `net` in training mode for the images of `targets`. `normaliser` maps
    the number of positive anchors, a scalar, to what the sums are divided by: in a distributed run
    their mean over the processes, so that the mean of the losses is the loss of the global batch.
    """
    anchors = net.anchors
    matchings = [match(anchors, target, settings.matching) for target in targets]
    positives = torch.stack([matching.positive.sum() for matching in matchings]).sum()
    count = normaliser(positives.float())

    with torch.autocast(predictions.class_logits.device.type, enabled=False):
        exact = _in_float32(predictions)
        losses = {
            "classes": settings.class_weight * class_loss(exact.class_logits, matchings, settings),
            "boxes": settings.box_weight * box_loss(anchors, exact.box_offsets, targets, matchings),
        }
        if exact.prototypes is not None:
            limit = settings.masks_at(net.config.image_size)
            samples = _assemble_masks(exact, targets, matchings, limit)
            losses["masks"] = settings.mask_weight * _prototype_mask_loss(exact, samples)
            if net.mask_iou is not None:
                smallest = settings.smallest_rescored_mask
                mask_iou = _mask_iou_loss(net.mask_iou, samples, smallest)
                losses["mask_iou"] = settings.mask_iou_weight * mask_iou
        elif exact.coefficients is not None:
            masks = _fc_mask_loss(anchors, exact, targets, matchings)
            losses["masks"] = settings.fc_mask_weight * masks
        losses = {name: loss / count for name, loss in losses.items()}
        if exact.semantic_logits is not None:
            semantic = semantic_loss(exact.semantic_logits, targets)
            losses["semantic"] = settings.semantic_weight * semantic
        return Losses(**losses)


def _in_float32(predictions: Predictions) -> Predictions:
    values = {name: value for name, value in vars(predictions).items() if value is not None}
    return dataclasses.replace(predictions, **{name: v.float() for name, v in values.items()})


def class_loss(
    logits: Tensor, matchings: Sequence[Matching], settings: LossSettings = LossSettings()
) -> Tensor:
    """Softmax cross entropy with hard negative mining (OHEM), summed; logits [B, P, C + 1].

    Of each image's background anchors only the hardest count, those with the lowest background
    probability: `negatives_per_positive` for each positive anchor.
    """
    labels = torch.stack([matching.labels for matching in matchings])
    with torch.no_grad():
        hardness = logits.logsumexp(dim=2) - logits[..., 0]  # -log p(background)
        hardness = hardness.masked_fill(labels != BACKGROUND, -torch.inf)
    chosen = labels > BACKGROUND
    for image, positives in enumerate(chosen.sum(dim=1).tolist()):
        wanted = settings.negatives_per_positive * positives
        if positives == 0:
            wanted = settings.negatives_without_objects
        available = int((labels[image] == BACKGROUND).sum())
        hardest = hardness[image].topk(min(wanted, available)).indices
        chosen[image, hardest] = True
    return F.cross_entropy(logits[chosen], labels[chosen], reduction="sum")


def box_loss(
    anchors: Tensor, offsets: Tensor, targets: Sequence[Target], matchings: Sequence[Matching]
) -> Tensor:
    """Smooth L1 between predicted offsets [B, P, 4] and targets of positive anchors, summed."""
    loss = _zero([offsets])
    for image, (target, matching) in enumerate(zip(targets, matchings, strict=True)):
        positive = matching.positive
        truth = target.boxes[matching.objects[positive]]
        wanted = boxes.encode(truth, anchors[positive])
        loss = loss + F.smooth_l1_loss(offsets[image, positive], wanted, reduction="sum")
    return loss


def semantic_loss(logits: Tensor, targets: Sequence[Target]) -> Tensor:
    """Binary cross entropy per class, mean over pixels and images, sum over classes.

    `logits` [B, C, H, W]; a pixel belongs to each class that has an object there.
    """
    wanted = torch.zeros_like(logits, dtype=torch.float32)
    for image, target in enumerate(targets):
        small = downsample_masks(target.masks, logits.shape[-2:])
        for label in target.labels.unique():
            wanted[image, label] = small[target.labels == label].amax(dim=0)
    pixels = logits.shape[-2] * logits.shape[-1]
    loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    return loss / pixels / len(targets)


@dataclass(frozen=True)
class _MaskSamples:
    """Masks assembled for n positive anchors of one image, and the objects they should show."""

    masks: Tensor
    """[n, Hp, Wp]: 0 to 1, cropped to the boxes of the objects."""
    truth: Tensor
    """[n, Hp, Wp]: 0 or 1."""
    boxes: Tensor
    """[n, 4]: relative corners of the objects."""
    labels: Tensor
    """int64 [n]: class ids of the objects."""
    scale: float
    """Positive anchors of the image for each of these."""


def _assemble_masks(
    predictions: Predictions, targets: Sequence[Target], matchings: Sequence[Matching], limit: int
) -> list[_MaskSamples]:
    """Assemble masks for the positive anchors of each image, at most `limit`, drawn at random.

    Images without positive anchors are left out.
    """
    prototypes, coefficients = predictions.prototypes, predictions.coefficients
    assert prototypes is not None and coefficients is not None
    size, samples = prototypes.shape[-2:], []
    for image, (target, matching) in enumerate(zip(targets, matchings, strict=True)):
        positives = matching.positive.nonzero()[:, 0]
        total = len(positives)
        if total == 0:
            continue
        if total > limit:
            positives = positives[torch.randperm(total, device=positives.device)[:limit]]
        objects = matching.objects[positives]
        masks = assemble(coefficients[image, positives], prototypes[image])
        samples.append(
            _MaskSamples(
                masks=crop(masks, crop_rectangles(target.boxes[objects], *size)),
                truth=downsample_masks(target.masks, size)[objects],
                boxes=target.boxes[objects],
                labels=target.labels[objects],
                scale=total / len(positives),
            )
        )
    return samples


def _prototype_mask_loss(predictions: Predictions, samples: Sequence[_MaskSamples]) -> Tensor:
    """`mask_loss`, summed as if all positive anchors had been drawn."""
    assert predictions.prototypes is not None and predictions.coefficients is not None
    loss = _zero((predictions.prototypes, predictions.coefficients))
    for each in samples:
        loss = loss + mask_loss(each.masks, each.truth, each.boxes).sum() * each.scale
    return loss


def _zero(tensors: Iterable[Tensor]) -> Tensor:
    """Return 0, computed from all tensors: distributed training requires every parameter to take
    part in the loss, even of a batch without objects."""
    return torch.stack([tensor.sum() for tensor in tensors]).sum() * 0


def mask_loss(masks: Tensor, truth: Tensor, object_boxes: Tensor) -> Tensor:
    """Return the binary cross entropy [n] of each mask, per pixel of its object's box.

    `masks` (probabilities, cropped to the boxes) and `truth` (0 or 1) are [n, H, W]; `object_boxes`
    [n, 4] are relative corners. As in the published code, it is computed from probabilities, not
    logits: pixels saturated on the wrong side cost 100 and have no gradient. So do pixels of an
    object outside its own box.
    """
    losses = F.binary_cross_entropy(masks, truth, reduction="none")
    pixels = boxes.area(object_boxes) * masks.shape[-2] * masks.shape[-1]
    return losses.sum(dim=(1, 2)) / pixels


def downsample_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Resize masks [n, S, S] of 0 and 1 (bilinear) to float [n, H, W] of 0 and 1."""
    if len(masks) == 0:
        return masks.new_zeros((0, *size), dtype=torch.float32)
    small = F.interpolate(masks[None].float(), tuple(size), mode="bilinear", align_corners=False)
    return (small[0] > 0.5).float()


def _mask_iou_loss(mask_iou: nn.Module, samples: Sequence[_MaskSamples], smallest: int) -> Tensor:
    """Smooth L1 between predicted and true IoU of masks of more than `smallest` pixels, summed."""
    large = []
    for each in samples:
        chosen = each.truth.sum(dim=(1, 2)) > smallest
        large.append((each.masks[chosen], each.truth[chosen], each.labels[chosen]))
    if not any(len(masks) for masks, _, _ in large):
        return _zero(mask_iou.parameters())
    masks, truth, labels = (torch.cat(parts) for parts in zip(*large, strict=True))
    with torch.no_grad():
        binary = (masks > 0.5).float()
        overlap = (binary * truth).sum(dim=(1, 2))
        iou = overlap / (binary.sum(dim=(1, 2)) + truth.sum(dim=(1, 2)) - overlap)
    predicted = mask_iou(masks[:, None]).gather(1, labels[:, None])[:, 0]
    return F.smooth_l1_loss(predicted, iou, reduction="sum")


def _fc_mask_loss(
    anchors: Tensor,
    predictions: Predictions,
    targets: Sequence[Target],
    matchings: Sequence[Matching],
) -> Tensor:
    """Loss of the fc-mask baseline (table 2c): binary cross entropy, summed over pixels and
    positive anchors, with the object's mask inside the predicted box, pooled to 16 x 16 pixels."""
    assert predictions.coefficients is not None
    side = round(predictions.coefficients.shape[2] ** 0.5)
    loss = _zero([predictions.coefficients])
    for image, (target, matching) in enumerate(zip(targets, matchings, strict=True)):
        positive = matching.positive
        if not positive.any():
            continue
        masks = predictions.coefficients[image, positive].sigmoid()
        with torch.no_grad():
            offsets = predictions.box_offsets[image, positive]
            window = boxes.decode(offsets, anchors[positive]).clamp(0, 1)
            truth = pool_masks(target.masks, matching.objects[positive], window, side)
        loss = loss + F.binary_cross_entropy(masks, truth.flatten(1).float(), reduction="sum")
    return loss


def pool_masks(masks: Tensor, objects: Tensor, windows: Tensor, side: int) -> Tensor:
    """Pool masks within windows to bool [n, side, side]: whether most of a cell's pixels are 1.

    `masks` [m, H, W] are 0 or 1, `objects` [n] are their indices, `windows` [n, 4] are corners in
    0..1, truncated to whole pixels. The cells of adaptive pooling may overlap by a pixel.
    """
    size = windows.new_tensor(masks.shape[:0:-1])
    low = torch.minimum(windows[:, :2], windows[:, 2:]) * size
    high = torch.maximum(windows[:, :2], windows[:, 2:]) * size
    first = torch.minimum(low, size - 1).long()
    last = torch.maximum(high.long(), first + 1)  # at least a pixel
    corners = zip(objects.tolist(), first.tolist(), last.tolist(), strict=True)
    parts = [masks[i, y1:y2, x1:x2] for i, (x1, y1), (x2, y2) in corners]
    return torch.stack([F.adaptive_avg_pool2d(part[None].float(), side)[0] > 0.5 for part in parts])
