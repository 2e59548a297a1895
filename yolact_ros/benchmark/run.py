"""Runs a benchmark: our models stage by stage, then everything side by side."""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from yolact_ros.benchmark.agreement import compare
from yolact_ros.benchmark.contender import Contender, Found
from yolact_ros.benchmark.memory import Memory, can_measure_memory, measure_memory
from yolact_ros.benchmark.others import mask_rcnn, ultralytics
from yolact_ros.benchmark.published import check_checkout, published
from yolact_ros.benchmark.report import (
    BatchReport,
    ContenderReport,
    Machine,
    ModelReport,
    Report,
)
from yolact_ros.benchmark.stages import stages_of
from yolact_ros.benchmark.timing import Timing, measure
from yolact_ros.benchmark.weights import random_network
from yolact_ros.benchmark.work import count_work, measure_ceilings
from yolact_ros.engine import Segmenter, fetch_weights, preprocess
from yolact_ros.engine.runtimes import EXPORTED, Runtime
from yolact_ros.network import (
    EMBEDDED,
    PUBLISHED,
    NetworkConfig,
    Yolact,
    build,
    config_of,
    load_weights,
    save_weights,
)
from yolact_ros.pictures import write_picture

T = TypeVar("T")
Image = npt.NDArray[np.uint8]
NODE_INSTANCES = 10
"""In each image, where the node's own work is measured."""


@dataclass(frozen=True)
class Settings:
    """What to measure, and how long."""

    models: tuple[str, ...]
    """Names: of random weights, the embedded model with its own. Or NAME=WEIGHTS, or a file."""
    image: Image
    """BGR, [H, W, 3]."""
    device: str = "auto"
    precision: str = "auto"
    backends: tuple[str, ...] = ("auto",)
    """As `Segmenter` has them. An exported file runs on its own."""
    batches: tuple[int, ...] = (1,)
    """Batch sizes to try."""
    score_threshold: float = 0.0
    reference: Path | None = None
    """A checkout of the published implementation."""
    mask_rcnn: bool = False
    ultralytics: tuple[str, ...] = ()
    """Names of its models."""
    memory: bool = True
    node: bool = True
    rounds: int = 20
    seconds: float = 60.0
    """The most that the rounds of one comparison take."""
    keep: Path | None = None
    """Folder where random weights are kept, and taken from when they are there."""
    clock: Callable[[], float] = time.perf_counter
    """What times are read from, as `measure` takes it."""

    def __post_init__(self) -> None:
        """Raises ValueError and FileNotFoundError before anything has run."""
        if not self.models:
            raise ValueError("models=() is not allowed: name one or more")
        if not self.batches or min(self.batches) < 1:
            raise ValueError(f"batches={self.batches} is not allowed: each must be at least 1")
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds} is not allowed: it must be at least 1")
        if self.reference is not None:
            check_checkout(self.reference)


@dataclass(frozen=True)
class _Model:
    """One of our models on a backend, ready to run."""

    segmenter: Segmenter
    options: dict[str, Any]
    """What the segmenter was made of."""
    note: str

    @property
    def config(self) -> NetworkConfig:
        return self.segmenter.config

    @property
    def name(self) -> str:
        runtime = self.segmenter.runtime
        return f"{self.config.name}, {runtime.name}, {runtime.precision}"

    @property
    def description(self) -> str:
        weights = self.note or Path(self.options["weights"]).name or "embedded weights"
        return f"{self.name} on {self.segmenter.device}, {weights}"


def run(settings: Settings, command: str, say: Callable[[str], None] = print) -> Report:
    """Measure everything that `settings` name. `say` is told what is under way.

    Raises ValueError, WeightsError or FileNotFoundError for models and files that cannot be used,
    ModuleNotFoundError for what is not installed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = [
            _prepare(spec, backend, settings, folder)
            for spec in settings.models
            for backend in (("auto",) if _is_exported(spec) else settings.backends)
        ]
        runtimes = [model.segmenter.runtime for model in models]
        say("ceilings")
        machine = describe_machine(runtimes, settings.clock)
        others = _others(models, settings, runtimes[0].device)
        node: dict[str, dict[str, float]] | str | None = None
        if settings.node and node_can_run():
            say("the node")
            node = _or_reason(say, lambda: _measure_node(models[0], settings.image, folder))
        reports = []
        for model in models:
            say(f"stages of {model.name}")
            report = _measure_model(model, machine, settings)
            if settings.memory and can_measure_memory():
                measure_it = partial(_measure_memory, model, settings, folder)
                report = replace(report, memory=_or_reason(say, measure_it))
            reports.append(report)
        if others:
            say("side by side")
        side_by_side = _side_by_side(models, others, settings)
    return Report(
        command=command,
        machine=machine,
        image=(settings.image.shape[0], settings.image.shape[1]),
        score_threshold=settings.score_threshold,
        models=tuple(reports),
        side_by_side=side_by_side,
        node=node,
    )


def _or_reason(say: Callable[[str], None], measure_it: Callable[[], T]) -> T | str:
    """What was measured; or, of a process that failed, the last line that it wrote."""
    try:
        return measure_it()
    except RuntimeError as error:
        say(f"not measured: {error}")
        return str(error).strip().splitlines()[-1]


def describe_machine(
    runtimes: Sequence[Runtime], clock: Callable[[], float] = time.perf_counter, size: int = 0
) -> Machine:
    """This machine, with a ceiling for each kind of number on each device that `runtimes` use.

    `size` as `measure_ceilings` takes it.
    """
    kinds = {
        ceiling_of(runtime): (runtime.device, runtime.dtype)
        for runtime in runtimes
        if not runtime.is_quantised
    }
    devices = dict.fromkeys(runtime.device for runtime in runtimes)
    return Machine(
        processor=_processor(),
        threads=torch.get_num_threads(),
        device=" and ".join(
            torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
            for device in devices
        ),
        software=f"Python {platform.python_version()}, PyTorch {torch.__version__}",
        ceilings={
            name: measure_ceilings(device, dtype, size, clock=clock)
            for name, (device, dtype) in kinds.items()
        },
    )


def ceiling_of(runtime: Runtime) -> str:
    """The name in `Machine.ceilings` of what holds for a network; 8 bits have none there."""
    return f"{runtime.precision} on {runtime.device}"


def _processor() -> str:
    """The processor's name where Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _is_exported(spec: str) -> bool:
    return Path(spec).suffix in EXPORTED


def _prepare(spec: str, backend: str, settings: Settings, folder: Path) -> _Model:
    """Build the segmenter of NAME, NAME=WEIGHTS or a file; random weights are written down."""
    model, _, weights = spec.partition("=")
    note = ""
    if not weights and model in PUBLISHED:
        weights = _random_weights(model, settings.image, settings.keep or folder)
        model, note = "", "random weights"
    elif not weights and model != EMBEDDED.name:
        model, weights = "", model
    options: dict[str, Any] = {
        "model": model,
        "weights": weights,
        "device": settings.device,
        "precision": settings.precision,
        "backend": backend,
    }
    return _Model(Segmenter(**options, score_threshold=settings.score_threshold), options, note)


def _random_weights(name: str, image: Image, folder: Path) -> str:
    """The file with random weights of a model, which is written if it is not there."""
    path = folder / f"{name}.safetensors"
    if not path.exists():
        config = config_of(name)
        save_weights(random_network(config, preprocess([torch.from_numpy(image)], config)), path)
    return str(path)


def _measure_model(model: _Model, machine: Machine, settings: Settings) -> ModelReport:
    segmenter, image = model.segmenter, settings.image
    clock = _clock(settings, segmenter.device)
    sizes = sorted({1, *settings.batches})
    totals = clock({str(size): partial(segmenter, [image] * size) for size in sizes})
    best = min(sizes, key=lambda size: totals[str(size)].median / size)
    reports = {
        size: BatchReport(size, totals[str(size)], clock(stages_of(segmenter, [image] * size)))
        for size in {1, best}
    }
    runtime = segmenter.runtime
    work = count_work(segmenter.config, 1, runtime.dtype)
    ceilings = machine.ceilings.get(ceiling_of(runtime))
    return ModelReport(
        name=model.name,
        description=model.description,
        instances=len(segmenter(image)),
        single=reports[1],
        best=reports[best],
        flops=work.flops,
        bytes=None if runtime.is_quantised else work.bytes,
        limit=None if ceilings is None else work.limit(ceilings),
        memory=None,
    )


def _clock(settings: Settings, device: torch.device) -> Callable[..., dict[str, Timing]]:
    """`measure` as the settings say."""
    return partial(
        measure,
        rounds=settings.rounds,
        seconds=settings.seconds,
        device=device,
        clock=settings.clock,
    )


def _measure_memory(model: _Model, settings: Settings, folder: Path) -> Memory:
    picture = folder / "image.png"
    write_picture(picture, settings.image)
    return measure_memory(model.options, picture)


def _others(models: Sequence[_Model], settings: Settings, device: torch.device) -> list[Contender]:
    """All others that were asked for."""
    image, score = settings.image, settings.score_threshold
    others = []
    if settings.reference is not None:
        nets = {
            model.config.name: _network_of(model)
            for model in models
            if model.config.name in PUBLISHED and not _is_exported(model.options["weights"])
        }
        others += [published(settings.reference, net, device, score) for net in nets.values()]
    if settings.mask_rcnn:
        others += [mask_rcnn(device, image, fast_nms=fast) for fast in (False, True)]
    return others + [ultralytics(device, image, name, score) for name in settings.ultralytics]


def _network_of(model: _Model) -> Yolact:
    """The network as it was loaded: the segmenter's own has been changed to run faster."""
    weights = model.options["weights"] or model.config.name
    net = build(model.config)
    load_weights(net, fetch_weights(weights) if weights in PUBLISHED else weights)
    return net


def _to_masks(segmenter: Segmenter) -> Callable[[Image], Found]:
    def segment(image: Image) -> Found:
        found = segmenter(image)
        return Found(found.integer_boxes(), found.scores, found.class_ids, found.masks)

    return segment


@torch.no_grad()
def _side_by_side(
    models: Sequence[_Model], others: Sequence[Contender], settings: Settings
) -> tuple[ContenderReport, ...]:
    """Ours and the others in turns; ours alone are no comparison."""
    if not others:
        return ()
    ours = [
        Contender(f"ours {model.name}", _to_masks(model.segmenter), model.note) for model in models
    ]
    calls = {each.name: partial(each.segment, settings.image) for each in (*ours, *others)}
    found = {name: call() for name, call in calls.items()}
    timings = _clock(settings, models[0].segmenter.device)(calls, warm_up=1)
    theirs = {
        each.name: f"published {model.config.name}"
        for each, model in zip(ours, models, strict=True)
    }

    def report(each: Contender) -> ContenderReport:
        same = theirs.get(each.name, "")
        return ContenderReport(
            name=each.name,
            note=each.note,
            timing=timings[each.name],
            instances=len(found[each.name].scores),
            speed_up=timings[same].median / timings[each.name].median if same in timings else None,
            agreement=compare(found[each.name], found[same]) if same in found else None,
        )

    return tuple(report(each) for each in (*ours, *others))


def node_can_run() -> bool:
    """Whether ROS 2 is sourced and the package's messages are built."""
    return all(importlib.util.find_spec(name) for name in ("rclpy", "yolact_ros.msg"))


def _measure_node(model: _Model, image: Image, folder: Path) -> dict[str, dict[str, float]]:
    """Stages of the node's own work, by `yolact_measure`, in a process of its own.

    Raises RuntimeError, with what it wrote, when it fails.
    """
    output = folder / "node.json"
    height, width = image.shape[:2]
    command = [
        *(sys.executable, "-c", "from yolact_ros.node.measure.main import main; exit(main())"),
        *("stages", "--size", f"{width}x{height}", "--json", str(output)),
        *("--instances", str(NODE_INSTANCES), "--frames", "50", "--rate", "15"),
        *("--device", model.options["device"]),
        *("--model", model.options["model"], "--weights", model.options["weights"]),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        wrote = f"{done.stdout}{done.stderr}"
        raise RuntimeError(f"the node cannot be measured (status {done.returncode}):\n{wrote}")
    rows = json.loads(output.read_text())["results"]
    return {row["name"]: {key: row[key] for key in ("median", "percentile_99")} for row in rows}
