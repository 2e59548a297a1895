"""Measure everything that is promised for GPUs, in one command of some minutes.

    python tools/gpu_check.py --reference CHECKOUT --output FOLDER
    python tools/gpu_check.py --estimate

CHECKOUT is one of github.com/dbolya/yolact; with it, figures have the published implementation's
beside them. Exits with 3 where there is no CUDA device: then nothing can be measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
import torch  # noqa: E402
from gpu_kernels import check_kernels  # noqa: E402
from gpu_report import to_markdown  # noqa: E402
from torch import Tensor  # noqa: E402

from yolact_ros import kernels  # noqa: E402
from yolact_ros.benchmark.boards import BOARDS, REACHED, estimates, parts  # noqa: E402
from yolact_ros.benchmark.memory import measure_memory  # noqa: E402
from yolact_ros.benchmark.precision import compare_precisions, is_harmless  # noqa: E402
from yolact_ros.benchmark.published import published  # noqa: E402
from yolact_ros.benchmark.timing import measure  # noqa: E402
from yolact_ros.benchmark.weights import random_network  # noqa: E402
from yolact_ros.benchmark.work import Ceilings, count_work, measure_ceilings  # noqa: E402
from yolact_ros.detection import Detections, DetectionSettings, detect  # noqa: E402
from yolact_ros.detection.instances import image_scales, place  # noqa: E402
from yolact_ros.detection.masks import make_masks, rescore  # noqa: E402
from yolact_ros.detection.results import Results  # noqa: E402
from yolact_ros.engine import Segmenter, preprocess  # noqa: E402
from yolact_ros.engine.graphs import CANDIDATES, Batch, shortlist  # noqa: E402
from yolact_ros.engine.runtimes import compiled  # noqa: E402
from yolact_ros.engine.runtimes.graph import trace  # noqa: E402
from yolact_ros.network import (  # noqa: E402
    CONFIGS,
    EMBEDDED,
    PUBLISHED,
    NetworkConfig,
    Predictions,
    Yolact,
    build,
    config_of,
    load_weights,
    official_name,
    save_weights,
)

MODELS = ("yolact_resnet50", "yolact_base", "yolact_plus_resnet50", "yolact_plus_base")
PARTS = ("kernels", "precision", "models", "compilers")
COMPILED = "yolact_plus_resnet50"
SCORE = 0.05
NO_DEVICE = 3


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is measured, and for how long."""

    device: torch.device
    dtype: torch.dtype
    image: Tensor
    """uint8 [H, W, 3], BGR."""
    configs: tuple[NetworkConfig, ...]
    batches: tuple[int, ...]
    rounds: int
    seconds: float
    """The most for one timing."""
    reference: Path | None
    folder: Path

    def time(self, calls: dict[str, Callable[[], object]]) -> dict[str, float]:
        """Median milliseconds of each call."""
        timings = measure(
            calls, rounds=self.rounds, seconds=self.seconds, device=self.device, warm_up=2
        )
        return {name: timing.median for name, timing in timings.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--reference", type=Path, help="checkout of github.com/dbolya/yolact")
    parser.add_argument("--output", type=Path, default=Path("gpu_check"), help="folder to write")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the tool")
    parser.add_argument("--quick", action="store_true", help="one small network, few rounds")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="what to do (default: all)"
    )
    parser.add_argument("--estimate", action="store_true", help="from data sheets; no GPU needed")
    options = parser.parse_args(arguments)
    if options.estimate:
        print_estimates()
        return 0
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here: nothing is measured. --estimate needs none.")
        return NO_DEVICE
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        setup = make_setup(options, device, Path(folder))
        report = check(setup, options.parts)
    report["seconds"] = time.perf_counter() - started
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "gpu_check.json").write_text(json.dumps(report, indent=2) + "\n")
    text = to_markdown(report)
    (options.output / "gpu_check.md").write_text(text + "\n")
    print(text)
    return 0


def print_estimates() -> None:
    for batch in (1, 32):
        print(estimates(MODELS, batch))
        print()
    print(
        f"Milliseconds an image that the layers take at least; in brackets images a second if "
        f"{REACHED:.0%} of that is reached, which is an assumption.\n"
    )
    for board in BOARDS:
        print(f"- {board.name}: {board.source}")
    print()
    print(parts("yolact_plus_resnet50", BOARDS[0], (480, 640)))


def make_setup(options: argparse.Namespace, device: torch.device, folder: Path) -> Setup:
    photo = cv2.imread(str(ROOT / "yolact_ros" / "demo" / "photos" / "riders.jpg"))
    assert photo is not None
    size = (160, 120) if options.quick else (640, 480)
    configs = tuple(map(config_of, MODELS))
    if options.quick:
        small = {"image_size": 256, "fpn_channels": 16, "class_names": ("cat", "dog")}
        configs = (PUBLISHED["yolact_plus_resnet50"].replace(**small, dcn_variant="interval4"),)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    return Setup(
        device=device,
        dtype=torch.float16 if cuda else torch.float32,
        image=torch.from_numpy(cv2.resize(photo, size)),
        configs=configs,
        batches=(1, 2) if options.quick else (1, 8, 16, 32, 64),
        rounds=1 if options.quick else 50,
        seconds=1.0 if options.quick else 5.0,
        reference=options.reference,
        folder=folder,
    )


def check(setup: Setup, parts: Sequence[str]) -> dict[str, Any]:
    """All numbers, as they are written."""
    quick = len(setup.configs) == 1
    report: dict[str, Any] = {
        "machine": describe(setup.device),
        "kernels": {},
        "precision": {},
        "models": {},
        "compilers": {},
    }
    if "kernels" in parts:
        say("kernels")
        report["kernels"] = check_kernels(setup.device, small=quick)
    for config in (*setup.configs, EMBEDDED) if quick else CONFIGS.values():
        if "precision" in parts:
            say(f"precision of {config.name}")
            report["precision"][config.name] = check_precision(setup, config)
    if "models" in parts:
        say("ceilings")
        ceilings = measure_ceilings(setup.device, setup.dtype, size=256 if quick else 0)
        report["ceilings"] = dataclasses.asdict(ceilings)
        for config in setup.configs:
            say(config.name)
            report["models"][config.name] = check_model(setup, config, ceilings)
    if "compilers" in parts:
        config = next(each for each in setup.configs if each.name == COMPILED)
        say(f"compilers of {config.name}")
        report["compilers"][config.name] = check_compilers(setup, config)
    return report


def describe(device: torch.device) -> dict[str, str]:
    cuda = device.type == "cuda"
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    used = kernels.usable(torch.zeros(1, device=device)) if cuda else False
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "CPU",
        "torch": torch.__version__,
        "triton": triton,
        "kernels are used": str(used),
    }


def check_precision(setup: Setup, config: NetworkConfig) -> dict[str, Any]:
    """Half precision and float32: trained weights of the embedded model, else those of the tests.

    The benchmark's random weights multiply rounding errors from layer to layer; trained ones do
    not, nor do those that the tests compare implementations with.
    """
    net = build(config)
    if config == EMBEDDED:
        load_weights(net, ROOT / "yolact_ros" / "weights" / f"{config.name}.safetensors")
    else:
        fill = runpy.run_path(str(ROOT / "test" / "reference" / "weights.py"))["fill"]
        for name, tensor in net.state_dict().items():
            tensor.copy_(torch.from_numpy(fill(official_name(name), tuple(tensor.shape))))
    settings = DetectionSettings(score_threshold=SCORE)
    found = compare_precisions(net, [setup.image], settings, torch.float16, setup.device)
    return {**dataclasses.asdict(found[0]), "harmless": is_harmless(found)}


def check_model(setup: Setup, config: NetworkConfig, ceilings: Ceilings) -> dict[str, Any]:
    net = random_network(config, preprocess([setup.image], config))
    segmenter = segmenter_of(setup, net)
    started = time.perf_counter()
    segmenter.warm_up((setup.image.shape[0], setup.image.shape[1]), (1,))
    warm_up = time.perf_counter() - started
    calls: dict[str, Callable[[], object]] = {"ours": partial(segmenter, setup.image)}
    calls["ours, full-size masks"] = lambda: segmenter(setup.image).masks
    if setup.reference is not None and config == PUBLISHED.get(config.name):
        theirs = published(setup.reference, net, setup.device, SCORE)
        calls["published"] = partial(theirs.segment, setup.image.numpy())
    single = setup.time(calls)
    work = count_work(config, 1, setup.dtype)
    batches = {size: throughput(setup, segmenter, size) for size in setup.batches}
    rate = max(batches.values())
    parts = stage_times(setup, segmenter)
    return {
        "warm_up_seconds": warm_up,
        "milliseconds": single,
        "images_per_second": batches,
        "instances": len(segmenter(setup.image)),
        "stages": parts,
        "deformable": extra_time(setup, net, dcn_variant="none"),
        "limit": work.limit(ceilings),
        "share_of_matrix_rate": work.flops * rate / ceilings.flops,
        "memory": dataclasses.asdict(memory_of(setup)) if setup.device.type == "cuda" else None,
    }


def check_compilers(setup: Setup, config: NetworkConfig) -> dict[str, Any]:
    """Milliseconds of one image with the network plain and compiled, and seconds until it ran.

    On CUDA each is in its graph. Instead of figures, why there are none: compilers need what is
    not everywhere, and the other parts of the report do not.
    """
    net = random_network(config, preprocess([setup.image], config))
    plain = segmenter_of(setup, net)

    def package() -> Segmenter:
        header, folded = plain.runtime.header, plain.runtime.run
        assert isinstance(folded, Yolact)
        path = setup.folder / "network.pt2"
        compiled.save(trace(folded, header), header, path)
        return Segmenter(weights=path, device=str(setup.device), score_threshold=SCORE)

    ways: dict[str, Callable[[], Segmenter]] = {
        "torch": lambda: plain,
        "inductor": lambda: segmenter_of(setup, net, "inductor"),
        "package": package,
    }
    report: dict[str, Any] = {"seconds": {}, "problems": {}}
    calls: dict[str, Callable[[], object]] = {}
    for name, make in ways.items():
        started = time.perf_counter()
        try:
            segmenter = make()
            segmenter.warm_up((setup.image.shape[0], setup.image.shape[1]))
        except Exception as error:  # of many types
            report["problems"][name] = f"{type(error).__name__}: {str(error)[:300]}"
            continue
        report["seconds"][name] = time.perf_counter() - started
        calls[name] = partial(segmenter, setup.image)
    return report | {"milliseconds": setup.time(calls)}


def segmenter_of(setup: Setup, net: Yolact, backend: str = "torch") -> Segmenter:
    save_weights(net, setup.folder / "weights.safetensors")
    options = {"device": str(setup.device), "backend": backend, "score_threshold": SCORE}
    return Segmenter("", setup.folder / "weights.safetensors", **options)  # type: ignore[arg-type]


def throughput(setup: Setup, segmenter: Segmenter, size: int) -> float:
    """Images a second in batches, each given before the results of the one before are taken."""
    images = [setup.image] * size
    segmenter.warm_up((setup.image.shape[0], setup.image.shape[1]), (size,))
    segmenter(images)
    started, done = time.perf_counter(), 0
    waiting = segmenter.submit(images)
    while done < 2 * setup.rounds and time.perf_counter() < started + setup.seconds:
        following = segmenter.submit(images)
        waiting.result()
        waiting, done = following, done + 1
    waiting.result()
    return size * (done + 1) / (time.perf_counter() - started)


@torch.no_grad()
def stage_times(setup: Setup, segmenter: Segmenter) -> dict[str, float]:
    """Milliseconds of each stage of a single image in fixed shapes; each a graph of its own."""
    runtime, settings = segmenter.runtime, segmenter.settings
    size = (setup.image.shape[0], setup.image.shape[1])
    image = setup.image[None].to(setup.device)
    scales = torch.tensor(image_scales([size]), dtype=torch.float32, device=setup.device)
    batch = preprocess(image, runtime.config, runtime.dtype)
    predictions = runtime(batch)
    assert isinstance(predictions, Predictions)

    def find() -> Detections:
        chosen, anchors, _ = shortlist(predictions, runtime.anchors, CANDIDATES)
        return detect(chosen, anchors, settings, fixed_shapes=True)

    detections = find()
    grids = make_masks(detections, predictions.prototypes, None)
    assert grids is not None
    placed = place(detections, grids, scales)
    results = Results.allocate(placed, Batch((size,), settings).mask_bytes(settings.top_k))
    values, ids, scores = grids.values, detections.class_ids, detections.scores
    calls: dict[str, Callable[[], object]] = {
        "preprocessing": lambda: preprocess(image, runtime.config, runtime.dtype),
        "network": lambda: runtime(batch),
        "NMS": find,
        "masks": lambda: make_masks(detections, predictions.prototypes, None),
        "packing": lambda: results.write(place(detections, grids, scales), scales),
    }
    mask_iou = runtime.mask_iou
    if mask_iou is not None:
        calls["re-scoring"] = lambda: rescore(mask_iou, values, ids, scores)
    return setup.time({name: as_graph(call, setup.device) for name, call in calls.items()})


def as_graph(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """What does `call` again without the time that launches take; on a CPU `call` itself."""
    if device.type != "cuda":
        return call
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream), torch.backends.cudnn.flags(enabled=True, benchmark=True):
        call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            kept = call()

    def replay() -> object:
        graph.replay()
        return kept

    return replay


@torch.no_grad()
def extra_time(setup: Setup, net: Yolact, **changes: Any) -> float:
    """Milliseconds that the network takes more than it would with `changes`; 0 if they are none."""
    config = net.config.replace(**changes)
    if config == net.config:
        return 0.0
    batch = preprocess([setup.image], config)
    other = segmenter_of(setup, random_network(config, batch))
    ours = segmenter_of(setup, net)
    batch = batch.to(setup.device, setup.dtype)
    calls = {
        name: as_graph(partial(each.runtime, batch), setup.device)
        for name, each in (("with", ours), ("without", other))
    }
    times = setup.time(calls)
    return times["with"] - times["without"]


def memory_of(setup: Setup) -> Any:
    # In a process of its own, which must find the package where it is not installed.
    os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    picture = setup.folder / "picture.png"
    cv2.imwrite(str(picture), setup.image.numpy())
    weights = str(setup.folder / "weights.safetensors")
    return measure_memory({"weights": weights, "device": str(setup.device)}, picture)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
