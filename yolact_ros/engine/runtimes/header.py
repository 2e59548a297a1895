"""Metadata of an exported network, and the names of its outputs."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor

from yolact_ros.detection import Detections, DetectionSettings
from yolact_ros.engine.preprocess import NORMALISATION
from yolact_ros.network import NetworkConfig, Predictions, WeightsError, Yolact
from yolact_ros.network.yolact import MaskIoUNet

FORMAT = "yolact_ros network 1"


@dataclass(frozen=True)
class Detected:
    """Outputs of a network whose graph includes the detection stage."""

    detections: Detections
    prototypes: Tensor | None
    """[B, k, Hp, Wp]; None unless masks are made from prototypes."""
    mask_scores: Tensor | None = None
    """[B, K] if the network re-scores masks."""

    def select(self, settings: DetectionSettings) -> tuple[Detections, Tensor | None]:
        """Apply the threshold, classes and top-k of `settings`; return the remaining detections
        and their mask scores."""
        found = self.detections
        scores = found.scores.masked_fill(~found.valid, -1)
        if settings.class_ids:
            wanted = torch.tensor(settings.class_ids, device=scores.device)
            scores = scores.masked_fill(~torch.isin(found.class_ids, wanted), -1)
        scores, order = scores.topk(min(settings.top_k, scores.shape[1]))
        rows = order.unsqueeze(-1)
        coefficients, mask_scores = found.coefficients, self.mask_scores
        chosen = Detections(
            boxes=found.boxes.take_along_dim(rows, 1),
            scores=scores,
            class_ids=found.class_ids.gather(1, order),
            coefficients=None if coefficients is None else coefficients.take_along_dim(rows, 1),
            valid=scores > settings.score_threshold,
        )
        return chosen, None if mask_scores is None else mask_scores.gather(1, order)


@dataclass(frozen=True)
class Header:
    """Stored in the metadata of an exported file, so that its path is enough to run it."""

    config: NetworkConfig
    settings: DetectionSettings | None = None
    """Those of the detection stage in the graph; None if the graph ends with raw predictions."""
    mask_iou: MaskIoUNet | None = None
    """The re-scoring network; it needs masks, which are made after the graph."""

    @classmethod
    def of(cls, net: Yolact, settings: DetectionSettings | None = None) -> Header:
        """Make the header for a network that is about to be traced.

        Raises ValueError for detection settings that are impossible in a graph.
        """
        if settings is not None:
            if settings.nms_method == "standard" or settings.class_ids:
                raise ValueError(
                    f"nms_method={settings.nms_method!r}, class_ids={settings.class_ids!r} is not "
                    "allowed in a graph: its shapes are fixed, so Fast NMS alone, of all classes"
                )
            settings = dataclasses.replace(settings, score_threshold=0.0)  # chosen at run time
        return cls(net.config, settings, net.mask_iou)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs, in order; docs/export.md describes them."""
        names = ["class_logits", "box_offsets"]
        if self.settings is not None:
            names = ["boxes", "scores", "class_ids", "counts"]
        if self.config.num_coefficients:
            names.append("coefficients")
        if self.config.mask_branch == "prototypes":
            names.append("prototypes")
        if self.settings is not None and self.config.mask_rescoring:
            names.append("mask_scores")
        return tuple(names)

    def read_outputs(self, values: Sequence[Tensor]) -> Predictions | Detected:
        """Convert the graph's outputs to the types of the rest of the package."""
        named = dict(zip(self.outputs, values, strict=True))
        coefficients, prototypes = named.get("coefficients"), named.get("prototypes")
        if self.settings is None:
            return Predictions(
                named["class_logits"], named["box_offsets"], coefficients, prototypes
            )
        scores = named["scores"]
        places = torch.arange(scores.shape[1], device=scores.device)
        detections = Detections(
            boxes=named["boxes"],
            scores=scores,
            class_ids=named["class_ids"].long(),
            coefficients=coefficients,
            valid=places < named["counts"].unsqueeze(1),
        )
        return Detected(detections, prototypes, named.get("mask_scores"))

    @property
    def fixed_settings(self) -> dict[str, object]:
        """Fields of `DetectionSettings` that the detection stage in the graph fixes."""
        names = ("nms_method", "nms_iou_threshold", "nms_top_k", "confidence_threshold")
        return {} if self.settings is None else {n: getattr(self.settings, n) for n in names}

    def check_settings(self, settings: DetectionSettings) -> None:
        """Raise ValueError for settings that the detection stage in the graph cannot apply.

        It returns at most as many instances as it was exported for, whatever `top_k` is.
        """
        for name, allowed in self.fixed_settings.items():
            wanted = getattr(settings, name)
            if wanted != allowed:
                raise ValueError(
                    f"{name}={wanted!r} is not allowed: the exported network has the detection "
                    f"stage inside, with {allowed!r}"
                )

    def to_metadata(self) -> dict[str, str]:
        """Convert to text by key; inverse of `from_metadata`."""
        values = {
            "format": FORMAT,
            "config": json.dumps(self.config.to_dict()),
            "input": json.dumps(_input(self.config)),  # for programs without this package
        }
        if self.settings is not None:
            values["detection"] = json.dumps(dataclasses.asdict(self.settings))
        if self.mask_iou is not None:
            tensors = {
                n: t.detach().cpu().contiguous() for n, t in self.mask_iou.state_dict().items()
            }
            values["mask_iou"] = base64.b64encode(safetensors.torch.save(tensors)).decode()
        return values

    @classmethod
    def from_metadata(cls, values: Mapping[str, str], where: object) -> Header:
        """Read the metadata of the file `where`. Raises WeightsError if missing or invalid."""
        if values.get("format") != FORMAT:
            raise WeightsError(
                f"{where} was not made by `yolact export`: its metadata has the format "
                f"{values.get('format')!r}, expected {FORMAT!r}"
            )
        try:
            config = NetworkConfig.from_dict(json.loads(values["config"]))
            settings, mask_iou = None, None
            if "detection" in values:
                settings = DetectionSettings(**json.loads(values["detection"]))
            if config.mask_rescoring:
                mask_iou = MaskIoUNet(config.num_classes).eval().requires_grad_(False)
                content = base64.b64decode(values["mask_iou"], validate=True)
                mask_iou.load_state_dict(safetensors.torch.load(content))
        except (
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,  # or RecursionError
            safetensors.SafetensorError,
        ) as error:
            raise WeightsError(f"{where} has bad metadata inside: {error}") from error
        return cls(config, settings, mask_iou)


def _input(config: NetworkConfig) -> dict[str, object]:
    """Describe the preprocessing: mean and standard deviation are of R, G, B in 0..255."""
    mean, std = NORMALISATION[config.backbone]
    return {"size": config.image_size, "channels": "RGB", "mean": mean[::-1], "std": std[::-1]}
