"""The measurements of networks that `gpu_check.py` makes, one function for each."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import runpy
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from yolact_ros.benchmark.agreement import compare
from yolact_ros.benchmark.contender import Found
from yolact_ros.benchmark.memory import measure_memory
from yolact_ros.benchmark.models import random_weights
from yolact_ros.benchmark.precision import compare_precisions, is_harmless
from yolact_ros.benchmark.published import load
from yolact_ros.benchmark.stages import as_graph, fixed_stages_of, repeats_on
from yolact_ros.benchmark.timing import measure
from yolact_ros.benchmark.work import Ceilings, count_work, measure_ceilings
from yolact_ros.detection import DetectionSettings
from yolact_ros.detection.candidates import best_scores
from yolact_ros.detection.regions import PackedMasks
from yolact_ros.engine import Segmenter, preprocess
from yolact_ros.engine.download import weights_file
from yolact_ros.engine.fixed import CANDIDATES
from yolact_ros.engine.runtimes import compiled
from yolact_ros.engine.runtimes.pytorch import run_network
from yolact_ros.engine.runtimes.tracing import trace
from yolact_ros.image_files import PHOTOS, Image, read_image, write_image
from yolact_ros.network import (
    EMBEDDED,
    NetworkConfig,
    Yolact,
    build,
    load_network,
    official_name,
    save_weights,
)
from yolact_ros.node.images import bgr_of_compressed, bgr_on_gpu

ROOT = Path(__file__).resolve().parent.parent
SCORE = 0.05


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is measured, and for how long."""

    device: torch.device
    dtype: torch.dtype
    image_size: tuple[int, int]
    """(height, width)."""
    jpeg_size: tuple[int, int]
    rounds: int
    seconds: float
    """Time limit of one timing, in seconds."""
    reference: Path | None
    data: tuple[Path, ...]
    """COCO-format files to measure accuracy on, with people."""
    folder: Path
    """Folder for temporary files."""

    @functools.cached_property
    def image(self) -> Tensor:
        return resized(read_image(PHOTOS / "riders.jpg"), self.image_size)

    def time(self, calls: dict[str, Callable[[], object]], repeats: int = 1) -> dict[str, float]:
        """Median milliseconds of each call; see `measure`."""
        timings = measure(
            calls,
            rounds=self.rounds,
            warm_up=min(3, self.rounds),
            seconds=self.seconds,
            device=self.device,
            repeats=repeats,
        )
        return {name: timing.median for name, timing in timings.items()}


def resized(photo: Image, size: tuple[int, int]) -> Tensor:
    """Return a photograph of `size` (height, width)."""
    return torch.from_numpy(cv2.resize(photo, size[::-1]))


class Models:
    """Networks with random weights and their segmenters, created on demand."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.segmenter = functools.lru_cache(maxsize=4)(self.new_segmenter)
        """Recently used ones are kept, since cuDNN searches for kernels anew for each new one."""

    @functools.cached_property
    def ceilings(self) -> Ceilings:
        size = 0 if self.setup.device.type == "cuda" else 256
        return measure_ceilings(self.setup.device, self.setup.dtype, size=size)

    def weights(self, config: NetworkConfig) -> Path:
        path = self.setup.folder / f"{config.name}-{config.dcn_variant}.safetensors"
        return random_weights(config, self.setup.image.numpy(), path)

    def network(self, config: NetworkConfig) -> Yolact:
        return load_network(self.weights(config), config)

    def new_segmenter(self, config: NetworkConfig, backend: str = "torch") -> Segmenter:
        device = str(self.setup.device)
        weights = self.weights(config)
        return Segmenter(weights=weights, device=device, backend=backend, score_threshold=SCORE)


def arithmetic(models: Models, config: NetworkConfig) -> dict[str, float]:
    """FLOP of one image, and the time its layers take at the ceilings, in milliseconds."""
    work = count_work(config, 1, models.setup.dtype)
    return {"flops": work.flops, "limit": work.limit(models.ceilings)}


def one_image(models: Models, config: NetworkConfig) -> dict[str, Any]:
    setup, segmenter = models.setup, models.segmenter(config)
    return {
        "warm_up_seconds": warm_up(setup, segmenter),
        "milliseconds": setup.time({"ours": partial(segmenter, setup.image)})["ours"],
        "instances": len(segmenter(setup.image)),
    }


def second_warm_up(models: Models, config: NetworkConfig) -> float:
    """Seconds that warming up takes once `one_image` has compiled what needs compiling."""
    return warm_up(models.setup, models.new_segmenter(config))


def warm_up(setup: Setup, segmenter: Segmenter) -> float:
    """Warm up a segmenter and return the seconds that it took."""
    started = time.perf_counter()
    segmenter.warm_up(setup.image_size, (1,))
    return time.perf_counter() - started


def beside_published(models: Models, config: NetworkConfig) -> dict[str, float]:
    """Time a model in turns with the published implementation, with the same weights."""
    setup = models.setup
    assert setup.reference is not None
    theirs = load(setup.reference, models.network(config), setup.device, SCORE)
    segmenter = models.segmenter(config)
    segmenter.warm_up(setup.image_size)  # the step before did, unless its process died
    image = setup.image.numpy()

    return setup.time(
        {
            "ours": lambda: segmenter(image),
            "ours, full-size masks": lambda: segmenter(image).masks,
            "published": lambda: theirs(image).cpu(),
            "published, masks left on the device": lambda: theirs(image),
        }
    )


def agreement(models: Models, config: NetworkConfig) -> dict[str, Any]:
    """Agreement of our detections with those of the published implementation; see `Agreement`.

    Not with the random weights that are timed: these make much of rounding errors.
    """
    setup = models.setup
    assert setup.reference is not None
    net, path = filled_network(config), setup.folder / f"filled-{config.name}.safetensors"
    save_weights(net, path)
    image, score = setup.image.numpy(), candidate_threshold(net, [setup.image])
    segmenter = Segmenter(weights=path, device=str(setup.device), score_threshold=score)
    segmenter.warm_up(setup.image_size)  # the first image would take the plain path, not the graph
    found = segmenter(image)
    if setup.device.type == "cuda" and not isinstance(found.stored_masks, PackedMasks):
        raise RuntimeError("not found by a graph: what is timed was not compared")
    ours = Found.of(found)._replace(boxes=found.integer_boxes())
    theirs = load(setup.reference, net, setup.device, score)(image)
    return dataclasses.asdict(compare(ours, theirs.cpu()))


@torch.no_grad()
def filled_network(config: NetworkConfig) -> Yolact:
    """A network with the deterministic weights of the tests."""
    net = build(config)
    fill = runpy.run_path(str(ROOT / "test" / "reference" / "weights.py"))["fill"]
    for name, tensor in net.state_dict().items():
        tensor.copy_(torch.from_numpy(fill(official_name(name), tuple(tensor.shape))))
    return net


@torch.no_grad()
def candidate_threshold(net: Yolact, images: Sequence[Tensor]) -> float:
    """Return the least score that in no image more than half of a graph's candidates exceed.

    `images` are uint8 [H, W, 3], BGR. With the weights of the tests nearly all anchors exceed any
    usual threshold.
    """
    best = best_scores(net(preprocess(images, net.config)).class_logits)
    return float(best.topk(min(CANDIDATES // 2, best.shape[1])).values[:, -1].max())


def throughput(models: Models, config: NetworkConfig, size: int) -> float:
    """Images per second in batches, each submitted before the previous results are fetched."""
    images = [models.setup.image] * size
    done, seconds, _ = _stream(models, config, images)
    return size * done / seconds


def cameras(models: Models, config: NetworkConfig) -> dict[str, float]:
    """Images per second of four cameras, one image of each per batch, from host to host.

    `longest` is the longest time between the results of two batches, in milliseconds.
    """
    photo = models.setup.image
    views = [photo, photo.flip(1), photo.roll(80, 1), photo.flip(1).roll(80, 1)]
    images = [view.contiguous() for view in views]
    done, seconds, longest = _stream(models, config, images)
    return {"images_per_second": len(images) * done / seconds, "longest": 1000 * longest}


def _stream(
    models: Models, config: NetworkConfig, images: list[Tensor]
) -> tuple[int, float, float]:
    """Number of batches, total seconds, and the longest time of one batch in seconds."""
    setup = models.setup
    segmenter = models.segmenter(config)
    segmenter.warm_up(setup.image_size, (len(images),))
    segmenter(images)
    times = [time.perf_counter()]
    waiting = segmenter.submit(images)
    while len(times) <= 2 * setup.rounds and times[-1] < times[0] + setup.seconds:
        following = segmenter.submit(images)
        waiting.result()
        waiting = following
        times.append(time.perf_counter())
    waiting.result()
    times.append(time.perf_counter())
    taken = [after - before for before, after in itertools.pairwise(times)]
    return len(taken), times[-1] - times[0], max(taken)


def stages(models: Models, config: NetworkConfig) -> dict[str, float]:
    """Milliseconds of each stage of a single image in fixed shapes; on CUDA as graphs."""
    setup, segmenter = models.setup, models.segmenter(config)
    calls = fixed_stages_of(segmenter, [setup.image.numpy()], in_parts=False)
    if setup.device.type == "cuda":
        runtime = segmenter.runtime
        batch = preprocess([setup.image.to(setup.device)], config, runtime.dtype)
        separate = run_network(models.network(config), setup.device, runtime.dtype, fast=False)
        call = as_graph(partial(separate, batch), setup.device)
        calls["network, convolutions not fused"] = call
    return setup.time(calls, repeats_on(setup.device))


def deformable(models: Models, config: NetworkConfig) -> float:
    """Milliseconds by which deformable convolutions slow the network down."""
    setup = models.setup
    batch = preprocess([setup.image], config).to(setup.device, setup.dtype)
    pair = {"with": config, "without": config.replace(dcn_variant="none")}
    segmenters = {name: models.new_segmenter(each) for name, each in pair.items()}
    calls = {
        name: as_graph(partial(each.runtime, batch), setup.device)
        for name, each in segmenters.items()
    }
    times = setup.time(calls, repeats_on(setup.device))
    return times["with"] - times["without"]


def memory(models: Models, config: NetworkConfig) -> dict[str, float]:
    # In its own process, which must find the package even if it is not installed.
    os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    path = models.setup.folder / "image.png"
    write_image(path, models.setup.image.numpy())
    options = {"weights": str(models.weights(config)), "device": str(models.setup.device)}
    return dataclasses.asdict(measure_memory(options, path))


def precision(setup: Setup, config: NetworkConfig) -> dict[str, Any]:
    """Half precision and float32: trained weights of the embedded model, else those of the tests.

    The benchmark's random weights multiply rounding errors from layer to layer; trained ones do
    not, nor do those that the tests compare implementations with. All photographs are taken, since
    one close decision can outweigh the rest of an image.
    """
    images = [resized(read_image(path), setup.image_size) for path in PHOTOS.glob("*.jpg")]
    shipped = config == EMBEDDED
    net = load_network(weights_file(config.name)) if shipped else filled_network(config)
    score = SCORE if shipped else candidate_threshold(net, images)
    settings = DetectionSettings(score_threshold=score)
    found = compare_precisions(net, images, settings, torch.float16, setup.device)
    return {**dataclasses.asdict(found), "harmless": is_harmless(found)}


def accuracy(setup: Setup) -> dict[str, float]:
    """Mask AP of the embedded model, in percent, in float32 and in half precision.

    It is the mean over several files: with 100 objects in one file, a single object that crosses
    one of the ten IoU thresholds already moves its AP by 0.1.
    """
    # They need the extra eval.
    from yolact_ros.data import DataSource
    from yolact_ros.evaluation.coco import evaluate

    sources = [DataSource.parse(str(path)) for path in setup.data]
    records = [r for source in sources for r in source.read().records(EMBEDDED.class_names)]
    found: dict[str, float] = {
        "objects": sum(not a.is_crowd for r in records for a in r.annotations)
    }
    for name, dtype in (("float32", torch.float32), ("half", setup.dtype)):
        segmenter = Segmenter(
            device=str(setup.device),
            precision=str(dtype).removeprefix("torch."),
            backend="torch",
            score_threshold=0,
        )
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            results = [evaluate(segmenter, source).masks for source in sources]
        found[name] = 100 * float(np.mean([masks.overall.ap for masks in results if masks]))
    return found


def tiled(photo: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Tile a photograph [H, W, 3] to `size`: enlarging it would blur its colours."""
    repeats = [-(-wanted // side) for wanted, side in zip(size, photo.shape, strict=False)]
    return np.tile(photo, (*repeats, 1))[: size[0], : size[1]]


def jpeg(setup: Setup) -> dict[str, Any]:
    """Decode a JPEG on the device and on the host: times and the difference of the pixels."""
    image = tiled(read_image(PHOTOS / "kitchen.jpg"), setup.jpeg_size)
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    message = SimpleNamespace(format="jpeg", data=data.tobytes())
    found = bgr_on_gpu(message, setup.device)
    if found is None:
        raise RuntimeError("the device does not decode a JPEG")
    apart = (found.cpu().int() - torch.from_numpy(bgr_of_compressed(message)).int()).abs()
    calls: dict[str, Callable[[], object]] = {
        "device": lambda: bgr_on_gpu(message, setup.device),
        "host": lambda: bgr_of_compressed(message),
        "host, and copied": lambda: torch.from_numpy(bgr_of_compressed(message)).to(setup.device),
    }
    return {
        "size": setup.jpeg_size,
        "milliseconds": setup.time(calls),
        "mean_difference": float(apart.float().mean()),
        "largest_difference": int(apart.max()),
        "close": float((apart <= 4).float().mean()),
    }


def compiler(models: Models, config: NetworkConfig, way: str) -> dict[str, Any]:
    """Milliseconds per image with the plain and the compiled network, and seconds to compile.

    On CUDA each is in its graph.
    """
    setup = models.setup
    started = time.perf_counter()
    segmenter = _packaged(models, config) if way == "package" else models.new_segmenter(config, way)
    segmenter.warm_up(setup.image_size)
    seconds = time.perf_counter() - started
    plain = models.segmenter(config)
    plain.warm_up(setup.image_size)
    times = setup.time(
        {"plain": partial(plain, setup.image), "compiled": partial(segmenter, setup.image)}
    )
    return {"seconds": seconds, "milliseconds": times}


def _packaged(models: Models, config: NetworkConfig) -> Segmenter:
    plain = models.segmenter(config)
    header, folded = plain.runtime.header, plain.runtime.run
    assert isinstance(folded, Yolact)
    path = models.setup.folder / "network.pt2"
    compiled.save(trace(folded, header), header, path)
    return Segmenter(weights=path, device=str(models.setup.device), score_threshold=SCORE)
