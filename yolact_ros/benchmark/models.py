"""Our models, ready to be measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from yolact_ros.benchmark.settings import Settings
from yolact_ros.benchmark.weights import random_network
from yolact_ros.engine import Image, Segmenter, preprocess
from yolact_ros.engine.runtimes import EXPORTED
from yolact_ros.network import CONFIGS, PUBLISHED, NetworkConfig, config_of, save_weights


@dataclass(frozen=True)
class Model:
    """One of our models on a backend, ready to run."""

    segmenter: Segmenter
    options: dict[str, Any]
    """Keyword arguments of the segmenter."""
    note: str
    name: str
    """Unique among the models."""

    @property
    def config(self) -> NetworkConfig:
        return self.segmenter.config

    @property
    def weights(self) -> str:
        return str(self.options["weights"])

    @property
    def description(self) -> str:
        weights = self.note or Path(self.weights).name or "embedded weights"
        return f"{self.name} on {self.segmenter.device}, {weights}"

    @property
    def is_exported(self) -> bool:
        return _is_exported(self.weights)


def prepare(settings: Settings, folder: Path) -> list[Model]:
    """Prepare each model on each backend; random weights go to `folder` unless kept elsewhere.

    Raises as `Segmenter` does.
    """
    return _told_apart(
        [
            _prepare(spec, backend, settings, folder)
            for spec in settings.models
            for backend in (("auto",) if _is_exported(spec) else settings.backends)
        ]
    )


def _is_exported(spec: str) -> bool:
    return Path(spec).suffix in EXPORTED


def _prepare(spec: str, backend: str, settings: Settings, folder: Path) -> Model:
    """Build the segmenter for NAME, NAME=WEIGHTS or a file; random weights are written first."""
    model, weights = _split(spec)
    note = ""
    if not weights and model in PUBLISHED:
        path = (settings.keep or folder) / f"{model}.safetensors"
        weights = str(random_weights(config_of(model), settings.image, path))
        model, note = "", "random weights"
    options: dict[str, Any] = {
        "model": model,
        "weights": weights,
        "device": settings.device,
        "precision": settings.precision,
        "backend": backend,
    }
    segmenter = Segmenter(**options, score_threshold=settings.score_threshold)
    runtime = segmenter.runtime
    name = f"{segmenter.config.name}, {runtime.name}, {runtime.precision}"
    return Model(segmenter, options, note, name)


def _split(spec: str) -> tuple[str, str]:
    """Split `spec` into model and weights, which may be empty; a path may contain "="."""
    model, _, weights = spec.partition("=")
    is_file = bool(weights) and Path(spec).expanduser().is_file()
    return (model, weights) if model in CONFIGS and not is_file else ("", spec)


def _told_apart(models: Sequence[Model]) -> list[Model]:
    """Remove duplicate models; add the weights to equal names."""
    counts = Counter(model.name for model in models)
    named = [
        replace(model, name=f"{model.name}, {model.weights or 'embedded weights'}")
        if counts[model.name] > 1
        else model
        for model in models
    ]
    return list({model.name: model for model in named}.values())


def random_weights(config: NetworkConfig, image: Image, path: Path) -> Path:
    """Return the file with weights of `random_network` for an image; write it if missing."""
    if not path.exists():
        save_weights(random_network(config, preprocess([torch.from_numpy(image)], config)), path)
    return path
