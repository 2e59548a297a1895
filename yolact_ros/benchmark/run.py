"""Runs a benchmark: our models stage by stage, then everything side by side."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from yolact_ros.benchmark.memory import Memory, can_measure_memory, measure_memory
from yolact_ros.benchmark.models import Model, prepare
from yolact_ros.benchmark.node import NodeStage, measure_node, node_can_run
from yolact_ros.benchmark.report import BatchReport, Machine, ModelReport, Report
from yolact_ros.benchmark.settings import Settings
from yolact_ros.benchmark.side_by_side import others_of, references_of, side_by_side
from yolact_ros.benchmark.stages import repeats_on, stages_of
from yolact_ros.benchmark.work import count_work, measure_ceilings
from yolact_ros.engine import Image
from yolact_ros.engine.device import choose_device
from yolact_ros.engine.runtimes import Runtime
from yolact_ros.image_files import write_image

T = TypeVar("T")


def run(settings: Settings, command: str, say: Callable[[str], None] = print) -> Report:
    """Measure everything in `settings`. `say` is called with the progress.

    Raises ValueError, WeightsError or FileNotFoundError for models and files that cannot be used,
    ModuleNotFoundError for missing packages.
    """
    device = choose_device(settings.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # others take the current one
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = prepare(settings, folder)
        runtimes = [model.segmenter.runtime for model in models]
        say("ceilings")
        machine = describe_machine(runtimes, settings.clock)
        references = references_of(models, settings)
        if settings.reference is not None:
            for name in (model.name for model in models if model.name not in references):
                say(f"{name}: nothing published with its weights to compare with")
        others = others_of(settings, [runtime.device for runtime in runtimes])
        reports = []
        for model in models:
            say(f"stages of {model.name}")
            report = _measure_model(model, machine, settings)
            if settings.memory and can_measure_memory():
                memory = _or_reason(say, partial(_measure_memory, model, settings, folder))
                report = replace(report, memory=memory)
            if settings.node:
                say(f"the node with {model.name}")
                node = _or_reason(say, partial(_measure_node, model, settings.image))
                report = replace(report, node=node)
            reports.append(report)
        if references or others:
            say("side by side")
        contenders = side_by_side(models, references, others, settings)
    return Report(
        command=command,
        machine=machine,
        image=(settings.image.shape[0], settings.image.shape[1]),
        score_threshold=settings.score_threshold,
        models=tuple(reports),
        side_by_side=contenders,
    )


def _or_reason(say: Callable[[str], None], measure_it: Callable[[], T]) -> T | str:
    """Return the measurement or, if it fails, the last line of the error."""
    try:
        return measure_it()
    except RuntimeError as error:
        say(f"not measured: {error}")
        return str(error).strip().splitlines()[-1]


def describe_machine(
    runtimes: Sequence[Runtime], clock: Callable[[], float] = time.perf_counter
) -> Machine:
    """Describe this machine, with ceilings for each precision and device that `runtimes` use."""
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
            name: measure_ceilings(device, dtype, clock=clock)
            for name, (device, dtype) in kinds.items()
        },
    )


def ceiling_of(runtime: Runtime) -> str:
    """Return a network's key in `Machine.ceilings`; 8-bit networks have no ceiling there."""
    return f"{runtime.precision} on {runtime.device}"


def _processor() -> str:
    """Return the processor's name, from /proc/cpuinfo on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _measure_model(model: Model, machine: Machine, settings: Settings) -> ModelReport:
    segmenter, image = model.segmenter, settings.image
    clock = settings.clock_of(segmenter.device)
    sizes = sorted({1, *settings.batches})
    totals = clock({str(size): partial(segmenter, [image] * size) for size in sizes})
    best = min(sizes, key=lambda size: totals[str(size)].median / size)
    by_stage = partial(clock, repeats=repeats_on(segmenter.device))
    runtime = segmenter.runtime
    ceilings = machine.ceilings.get(ceiling_of(runtime))

    def report(size: int) -> BatchReport:
        work = count_work(segmenter.config, size, runtime.dtype)
        return BatchReport(
            images=size,
            total=totals[str(size)],
            stages=by_stage(stages_of(segmenter, [image] * size)),
            flops=work.flops,
            bytes=None if runtime.is_quantised else work.bytes,
            limit=None if ceilings is None else work.limit(ceilings),
        )

    single = report(1)
    return ModelReport(
        name=model.name,
        description=model.description,
        instances=len(segmenter(image)),
        single=single,
        best=single if best == 1 else report(best),
        memory=None,
        node=None,
    )


def _measure_memory(model: Model, settings: Settings, folder: Path) -> Memory:
    path = folder / "image.png"
    write_image(path, settings.image)
    return measure_memory(model.options, path)


def _measure_node(model: Model, image: Image) -> dict[str, NodeStage]:
    if not node_can_run():
        raise RuntimeError("that needs ROS 2 and the built package")
    return measure_node(model.options, (image.shape[0], image.shape[1]))
