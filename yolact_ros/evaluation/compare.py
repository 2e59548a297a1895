"""The papers' comparisons on this machine: time of each row and, given weights and data, its AP."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from yolact_ros.benchmark.models import random_weights
from yolact_ros.benchmark.stages import repeats_on, stages_of
from yolact_ros.benchmark.timing import check_limits, measure
from yolact_ros.data import DataSource
from yolact_ros.engine import Image, Segmenter
from yolact_ros.engine.runtimes import EXPORTED
from yolact_ros.evaluation.coco import evaluate
from yolact_ros.evaluation.findings import read_dataset
from yolact_ros.evaluation.papers import Comparison, Row
from yolact_ros.network import NetworkConfig, WeightsError, config_of

RANDOM = "random"


@dataclass(frozen=True)
class Setup:
    """What is timed, and how."""

    image: Image
    """BGR [H, W, 3]"""
    device: str = "auto"
    precision: str = "auto"
    rounds: int = 10
    warm_up: int = 3
    """Rounds before those, not counted."""
    backend: str = "torch"
    """What runs the networks; all but PyTorch take some seconds to convert each one."""
    base: NetworkConfig | None = None
    """Replaces the paper's network, and is the model of weights that do not name theirs."""
    weights: tuple[str, ...] = ()
    """Files or names of published models, for all rows that they fit, or `ROW=WEIGHTS` for one.
    Other rows have random weights."""

    def __post_init__(self) -> None:
        """Raises ValueError before anything has run."""
        check_limits(self.rounds)


@dataclass(frozen=True)
class MeasuredRow:
    """A row as published and as measured here. None: not published or not measured."""

    name: str
    paper_ap: float | None = None
    """Mask AP in percent."""
    paper_milliseconds: float | None = None
    network: str = ""
    """Name of the configuration; empty for a method that this package does not have."""
    weights: str = ""
    """A file or a name, or "random"."""
    ap: float | None = None
    """Mask AP in percent."""
    milliseconds: float | None = None
    """Median, from an image to full-size masks, or of a stage."""
    percentile_99: float | None = None
    """99th percentile in milliseconds."""
    detection: float | None = None
    """Median time from raw predictions to small masks, including NMS; None if a CUDA graph covers
    all stages."""


@dataclass(frozen=True)
class _Run:
    """A row that can be run: a call goes from the image to full-size masks."""

    segmenter: Segmenter
    weights: str
    image: Image
    detection: list[float] = field(default_factory=list)
    """Milliseconds of all calls."""

    def __call__(self) -> None:
        (instances,), stages = self.segmenter.submit([self.image]).result()
        instances.regions()
        self.detection.append(stages.detection)


def compare(
    comparison: Comparison, setup: Setup, source: DataSource | None = None
) -> list[MeasuredRow]:
    """Measure all rows of a table that this package can run, interleaved, in one process.

    Rows with weights also get their AP on `source`. Before anything is timed, raises ValueError for
    weights that fit no row and DataError for data that they cannot be measured on.
    """
    runs = {row.name: _run(row, comparison, setup) for row in _runnable(comparison)}
    _check_used(setup, {run.weights for run in runs.values()}, comparison)
    for run in runs.values():
        if source is not None and run.weights != RANDOM:
            read_dataset(run.segmenter, source)
    device = next(iter(runs.values())).segmenter.device
    timings = measure(runs, rounds=setup.rounds, warm_up=setup.warm_up, device=device)
    results = []
    for row in comparison.rows:
        result = MeasuredRow(row.name, row.ap, row.milliseconds)
        if row.name in runs:
            run, timing = runs[row.name], timings[row.name]
            result = dataclasses.replace(
                result,
                network=run.segmenter.config.name,
                weights=run.weights.removeprefix(f"{row.name}="),
                ap=_mask_ap(run, source),
                milliseconds=timing.median,
                percentile_99=timing.percentile_99,
                detection=float(np.median(run.detection[-timing.rounds :])) or None,
            )
        results.append(result)
    return results


def compare_stages(comparison: Comparison, setup: Setup) -> list[MeasuredRow]:
    """Time the stages of a network, interleaved, and the whole."""
    run = _run(Row("all"), comparison, setup)
    calls: dict[str, Callable[[], object]] = {**stages_of(run.segmenter, [setup.image])}
    calls["image to masks"] = run
    device = run.segmenter.device
    timings = measure(
        calls,
        rounds=setup.rounds,
        warm_up=setup.warm_up,
        device=device,
        repeats=repeats_on(device),
    )
    return [
        MeasuredRow(
            name,
            network=run.segmenter.config.name,
            weights=run.weights,
            milliseconds=timing.median,
            percentile_99=timing.percentile_99,
        )
        for name, timing in timings.items()
    ]


def _runnable(comparison: Comparison) -> list[Row]:
    return [row for row in comparison.rows if row.changes is not None]


def _run(row: Row, comparison: Comparison, setup: Setup) -> _Run:
    """Prepare a row with the first weights that fit it, or with random ones."""
    changes = dict(row.changes or {})
    make = partial(
        Segmenter,
        device=setup.device,
        precision=setup.precision,
        backend=setup.backend,
        nms_method=row.nms,
        score_threshold=0.0,
    )
    for text in setup.weights:
        weights = text.removeprefix(f"{row.name}=")
        named = weights != text
        if not named and _names_a_row(text, comparison):
            continue
        base = setup.base and setup.base.replace(**(changes if named else {}))
        segmenter = _load(make, weights, base)
        wrong = {
            name: getattr(segmenter.config, name)
            for name, value in changes.items()
            if getattr(segmenter.config, name) != value
        }
        if not wrong:
            return _Run(segmenter, text, setup.image)
        if named:
            raise ValueError(f"{weights} does not fit the row {row.name!r}: it has {wrong}")
    config = (setup.base or config_of(comparison.base)).replace(**changes)
    return _Run(_random(make, config, setup.image), RANDOM, setup.image)


def _load(make: Callable[..., Segmenter], weights: str, base: NetworkConfig | None) -> Segmenter:
    """`base` is for weights that do not say which model they are for."""
    try:
        if Path(weights).suffix in EXPORTED:
            return make(weights=weights, backend="auto")
        return make(weights=weights)
    except WeightsError:
        if base is None:
            raise
        return make(base, weights)


def _names_a_row(text: str, comparison: Comparison) -> bool:
    return any(text.startswith(f"{row.name}=") for row in _runnable(comparison))


def _check_used(setup: Setup, used: set[str], comparison: Comparison) -> None:
    for text in setup.weights:
        if text not in used:
            rows = ", ".join(row.name for row in _runnable(comparison))
            raise ValueError(f"the weights {text} are for no row of this table; it has {rows}")


def _mask_ap(run: _Run, source: DataSource | None) -> float | None:
    """Return the mask AP in percent; None for random weights, without data or its objects."""
    if source is None or run.weights == RANDOM:
        return None
    masks = evaluate(run.segmenter, source, progress=True).masks
    return None if masks is None or math.isnan(masks.overall.ap) else 100 * masks.overall.ap


def _random(make: Callable[..., Segmenter], config: NetworkConfig, image: Image) -> Segmenter:
    """Make a segmenter with random weights that find the maximum number of instances."""
    with tempfile.TemporaryDirectory() as folder:
        weights = random_weights(config, image, Path(folder) / "random.safetensors")
        return make(weights=weights)
