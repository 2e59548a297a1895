"""Measure everything that is promised for GPUs, in one command of some minutes.

    python tools/gpu_check.py --reference CHECKOUT --output FOLDER
    python tools/gpu_check.py --estimate

CHECKOUT is one of github.com/dbolya/yolact; with it, the published implementation is measured
alongside. Results are written to FOLDER after each step; a failed step does not stop the others.
Exits with 1 if a step failed or was not reached or a kernel is wrong, and with 3 where there is no
CUDA device.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
sys.path[:0] = [str(ROOT), str(TOOLS)]  # Python may have been told to leave them out

import gpu_kernels  # noqa: E402
import gpu_steps  # noqa: E402
import torch  # noqa: E402
from gpu_boards import BOARDS, REACHED, estimates, parts  # noqa: E402
from gpu_record import MEASURED, Files, Step, begin, supervise, work  # noqa: E402
from gpu_report import to_markdown, wrong_kernels  # noqa: E402
from gpu_steps import Models, Setup  # noqa: E402

from yolact_ros.engine.device import choose_device  # noqa: E402
from yolact_ros.engine.failures import responds  # noqa: E402
from yolact_ros.engine.runtimes.files import check_compiler  # noqa: E402
from yolact_ros.extras import MissingExtraError  # noqa: E402
from yolact_ros.network import CONFIGS, EMBEDDED, PUBLISHED, NetworkConfig, config_of  # noqa: E402

MODELS = ("yolact_resnet50", "yolact_base", "yolact_plus_resnet50", "yolact_plus_base")
PLUS, FAST = "yolact_plus_resnet50", "yolact_resnet50"
"""The models that aims are about."""
PARTS = (
    "models",
    "cameras",
    "details",
    "kernels",
    "precision",
    "others",
    "compilers",
    "tiles",
)
"""In the order in which they are done: what the aims need comes first."""
INCOMPLETE, NO_DEVICE = 1, 3


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.estimate:
        print_estimates()
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here: nothing is measured. --estimate needs none.")
        return NO_DEVICE
    try:
        device = choose_device(options.device)
    except ValueError as error:
        print(error)
        return NO_DEVICE
    files = Files(options.output)
    if options.worker is not None:
        return run_worker(options, device, files)
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        begin(files, list(steps_of(make_setup(options, device, Path(folder)), options)))
        command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--worker", folder]
        supervise(command, files, options.seconds)
    report = files.read()
    print(to_markdown(report))
    tell_what_was_left_out(options)
    complete = set(report["steps"].values()) == {MEASURED}
    return 0 if complete and not wrong_kernels(report) else INCOMPLETE


def tell_what_was_left_out(options: argparse.Namespace) -> None:
    """On the standard error: it is no part of the report."""
    if options.reference is None:
        print("Without --reference: the published implementation is not measured", file=sys.stderr)
    if not options.data:
        print("Without --data: accuracy in half precision is not measured", file=sys.stderr)
    if "inductor" not in (ways := _compilers(options.device)):
        print("Without a compiler: compiled networks are not measured", file=sys.stderr)
    elif "package" not in ways:
        print("Without the CUDA toolkit: compiled packages are not measured", file=sys.stderr)
    if options.quick:
        print("--quick: small networks, whose times say nothing of the aims", file=sys.stderr)


def _compilers(device: str) -> tuple[str, ...]:
    """The ways of compiling a network that this machine has for a device."""
    try:
        check_compiler("it", torch.device(device))
    except MissingExtraError:
        return ()
    if device == "cpu":
        return "inductor", "package"
    from torch.utils.cpp_extension import CUDA_HOME  # looks for it, and says so where there is none

    return ("inductor",) if CUDA_HOME is None else ("inductor", "package")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--reference", type=Path, help="checkout of github.com/dbolya/yolact")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=(),
        help="files in COCO's format, with people, for the accuracy in half precision",
    )
    parser.add_argument("--output", type=Path, default=Path("gpu_check"), help="folder to write")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the tool")
    parser.add_argument("--quick", action="store_true", help="one small network, few rounds")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="what to do (default: all)"
    )
    parser.add_argument(
        "--seconds", type=float, default=470.0, help="time limit; nothing is measured after it"
    )
    parser.add_argument("--estimate", action="store_true", help="from data sheets; no GPU needed")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def print_estimates() -> None:
    for batch in (1, 32):
        print(estimates(MODELS, batch))
        print()
    print(
        f"Minimum milliseconds per image for the layers; in parentheses images per second if "
        f"{REACHED:.0%} of that is reached, which is an assumption.\n"
    )
    for board in BOARDS:
        print(f"- {board.name}: {board.source}")
    print()
    print(parts(PLUS, BOARDS[0], (480, 640)))


def run_worker(options: argparse.Namespace, device: torch.device, files: Files) -> int:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    steps = list(steps_of(make_setup(options, device, options.worker), options))
    with torch.no_grad():
        return work(files, steps, partial(responds, device))


def make_setup(options: argparse.Namespace, device: torch.device, folder: Path) -> Setup:
    quick = options.quick
    return Setup(
        device=device,
        dtype=torch.float16 if device.type == "cuda" else torch.float32,
        image_size=(120, 160) if quick else (480, 640),
        jpeg_size=(120, 160) if quick else (1080, 1920),
        rounds=1 if quick else 50,
        seconds=1.0 if quick else 3.0,
        reference=options.reference,
        data=tuple(options.data),
        folder=folder,
    )


def steps_of(setup: Setup, options: argparse.Namespace) -> Iterator[Step]:
    """All steps of the parts that are wanted, in the order in which they are done."""
    device, quick, models = setup.device, options.quick, Models(setup)
    plus = ModelSteps(models, PLUS, small_config() if quick else config_of(PLUS))
    others = [] if quick else [name for name in MODELS if name != PLUS]
    all_models = [plus, *(ModelSteps(models, name, config_of(name)) for name in others)]
    rest = (EMBEDDED,) if quick else tuple(CONFIGS.values())
    steps: dict[str, Iterable[Step]] = {
        "models": (step for model in all_models for step in model.main()),
        "details": detail_steps(all_models),
        "precision": precision_steps(
            setup, dict.fromkeys((*(model.config for model in all_models), *rest))
        ),
        "kernels": (
            Step(("kernels", name), partial(check_kernel, make, device, quick))
            for name, make in gpu_kernels.builders(device, quick).items()
        ),
        "cameras": (
            Step(("cameras", PLUS), partial(gpu_steps.cameras, models, plus.config)),
            Step(("JPEG",), partial(gpu_steps.jpeg, setup)),
        ),
        "others": other_steps(all_models),
        "compilers": (
            Step(("compilers", PLUS, way), partial(gpu_steps.compiler, models, plus.config, way))
            for way in _compilers(device.type)
        ),
        "tiles": (
            Step(("tiles", name, size), partial(gpu_kernels.sweep_tiles, device, shape, size))
            for name, shape in gpu_kernels.layers(quick).items()
            for size in gpu_kernels.tile_sizes(quick)
        ),
    }
    yield Step(("machine",), partial(describe, device))
    for part in PARTS:
        if part in options.parts:
            yield from steps[part]


def small_config() -> NetworkConfig:
    small = {"image_size": 256, "fpn_channels": 16, "class_names": ("cat", "dog")}
    return PUBLISHED[PLUS].replace(**small, dcn_variant="interval4")


@dataclasses.dataclass(frozen=True)
class ModelSteps:
    """The steps that measure one model."""

    models: Models
    name: str
    config: NetworkConfig

    def main(self) -> Iterator[Step]:
        """One image, and beside the published implementation: what most aims are about."""
        yield self._step(gpu_steps.one_image, "one image")
        if self.models.setup.reference is not None:
            yield self._step(gpu_steps.beside_published, "side by side")
            yield self._step(gpu_steps.agreement, "agreement")

    def work(self) -> Step:
        return self._step(gpu_steps.arithmetic, "work")

    def start(self) -> Iterator[Step]:
        """What it takes until the first image."""
        yield self._step(gpu_steps.second_warm_up, "second warm-up")
        if self.models.setup.device.type == "cuda":
            yield self._step(gpu_steps.memory, "memory")

    def stages(self) -> Iterator[Step]:
        yield self._step(gpu_steps.stages, "stages")
        if self.config.dcn_variant != "none":
            yield self._step(gpu_steps.deformable, "deformable")

    def batches(self, *sizes: int) -> Iterator[Step]:
        for size in sizes:
            measure = partial(gpu_steps.throughput, size=size)
            yield self._step(measure, "images a second", f"batch {size}")

    def _step(self, measure: Callable[[Models, NetworkConfig], object], *place: str) -> Step:
        run = partial(measure, self.models, self.config)
        return Step(("models", self.name, *place), run)


def detail_steps(all_models: Sequence[ModelSteps]) -> Iterator[Step]:
    """What the other aims are about."""
    plus = all_models[0]
    yield Step(("ceilings",), lambda: dataclasses.asdict(plus.models.ceilings))
    for model in all_models:
        yield model.work()
    yield from plus.stages()
    yield from plus.start()
    for model in all_models:
        if model.name == FAST:
            yield from model.batches(32, 64, 16, 8)


def precision_steps(setup: Setup, configs: Iterable[NetworkConfig]) -> Iterator[Step]:
    """What half precision changes."""
    if setup.data:
        yield Step(("accuracy",), partial(gpu_steps.accuracy, setup))
    for config in configs:
        yield Step(("precision", config.name), partial(gpu_steps.precision, setup, config))


def other_steps(all_models: Sequence[ModelSteps]) -> Iterator[Step]:
    """The details of the other models."""
    sizes = (2,) if len(all_models) == 1 else (8, 32)
    for model in all_models:
        if model.name != PLUS:
            yield from model.start()
            yield from model.stages()
        if model.name != FAST:
            yield from model.batches(*sizes)


def check_kernel(
    make: Callable[[], gpu_kernels.Case], device: torch.device, small: bool
) -> dict[str, dict[str, float]]:
    return gpu_kernels.check(make(), device, small)


def describe(device: torch.device) -> dict[str, str]:
    cuda = device.type == "cuda"
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "CPU",
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "triton": triton,
        "cuDNN": str(torch.backends.cudnn.version()) if cuda else "none",
    }


if __name__ == "__main__":
    sys.exit(main())
