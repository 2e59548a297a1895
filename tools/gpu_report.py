"""The results of `gpu_check.py` as Markdown, next to the aims. Any part may be missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Report = dict[str, Any]
Row = tuple[str, str, str]

PLUS = "yolact_plus_resnet50"
NOT_USED = ["not used", ""]

SAME_SHARE, SAME_IOU = 0.85, 0.95
"""The least share of the published implementation's instances that half precision finds, and the
least mean IoU of their masks: with random weights some decisions are very close."""
KERNEL_ERROR = 0.01
"""Largest relative error of a kernel in half precision; twice its twin's is accepted too."""


def to_markdown(report: Report) -> str:
    machine = ", ".join(f"{name}: {value}" for name, value in report.get("machine", {}).items())
    lines = [f"{machine or 'machine unknown'}; all took {report.get('seconds', 0):.0f} s."]
    if "ceilings" in report:
        ceilings = report["ceilings"]
        flops, moved = ceilings["flops"] / 1e12, ceilings["bytes"] / 1e9
        lines.append(f"Ceilings: {flops:.1f} TFLOP/s, {moved:.0f} GB/s.")
    parts = [
        table(("aim", "figure", "reached"), aims(report)),
        *(_model(name, model) for name, model in report.get("models", {}).items()),
        *(_compilers(name, found) for name, found in report.get("compilers", {}).items()),
        _jpeg(report["JPEG"]) if "JPEG" in report else [],
        _precision(report.get("precision", {})),
        _kernels(report.get("kernels", {})),
        _tiles(report.get("tiles", {})),
        _unmeasured(report.get("steps", {})),
        [f"{name}: {text}" for name, texts in report.get("warnings", {}).items() for text in texts],
    ]
    for part in parts:
        if part:
            lines += ["", *part]
    return "\n".join(lines)


def aims(report: Report) -> list[Row]:
    """Rows of aims that have figures: the aim, the figures, and whether it is reached."""
    rows: list[Row] = []
    for name, model in report.get("models", {}).items():
        rows += [(f"{name}: {aim}", figure, reached) for aim, figure, reached in _aims(name, model)]
        rates, flops = _rates(model), model.get("work", {}).get("flops")
        if name == "yolact_resnet50" and rates:
            best = max(rates.values())
            rows.append(_aim(f"{name}: over 1,500 images a second", f"{best:.0f}", best > 1500))
            if flops and "ceilings" in report:
                share = flops * best / report["ceilings"]["flops"]
                rows.append(_aim(f"{name}: 35% of the matrix rate", f"{share:.0%}", share >= 0.35))
    for name, found in report.get("cameras", {}).items():
        rate, longest = found["images_per_second"], found["longest"]
        figure = f"{rate:.0f} images a second, the slowest four in {longest:.1f} ms"
        reached = rate >= 120 and longest <= 1000 / 30
        rows.append(_aim(f"{name}: four cameras of 30 Hz", figure, reached))
    if "JPEG" in report:
        close, mean = report["JPEG"]["close"], report["JPEG"]["mean_difference"]
        figure, reached = f"{close:.2%}, {mean:.2f}", close >= 0.95 and mean <= 1
        # nvJPEG repeats chroma, which libjpeg interpolates: edges of colours differ.
        rows.append(_aim("JPEG: 95% of values within 4 levels, 1 on average", figure, reached))
    if "accuracy" in report:
        full, half = report["accuracy"]["float32"], report["accuracy"]["half"]
        objects = report["accuracy"]["objects"]
        figure = f"{full:.2f} and {half:.2f} on {objects} objects"
        reached = abs(full - half) <= 0.1
        rows.append(_aim("embedded model: mask AP in half precision within 0.1", figure, reached))
    for name, found in report.get("precision", {}).items():
        iou, matched = found["mean_mask_iou"], f"{found['matched']} of {found['instances']}"
        figure = f"{iou:.4f}, {matched}"
        rows.append(_aim(f"{name}: half precision, mask IoU 0.99", figure, found["harmless"]))
    wrong = wrong_kernels(report)
    for name, found in report.get("kernels", {}).items():
        if "kernel" in found:
            figure = f"{found['kernel']['error']:.1g}"
            rows.append(_aim(f"kernel {name}: as exact as its twin", figure, name not in wrong))
    return rows


def wrong_kernels(report: Report) -> list[str]:
    """Names of kernels whose error is NaN or much larger than their twin's."""
    return [
        name
        for name, found in report.get("kernels", {}).items()
        if "kernel" in found
        and not found["kernel"]["error"] <= max(2 * found["twin"]["error"], KERNEL_ERROR)
    ]


def _aims(name: str, model: Report) -> Iterator[Row]:
    """Rows for the aims of a single model."""
    single = model.get("one image", {})
    ours = single.get("milliseconds")
    if "side by side" in model:
        times = model["side by side"]
        ratio = times["published, masks left on the device"] / times["ours"]
        whole = times["published"] / times["ours, full-size masks"]
        figure = f"{ratio:.1f}, each to its own masks; {whole:.1f}, both to full size on the host"
        yield _aim("10 times the published rate", figure, ratio >= 10)
    if "agreement" in model:
        same = model["agreement"]
        share = same["matched"] / max(same["instances"], 1)
        figure = f"{share:.0%}, mask IoU {same['mean_mask_iou']:.3f}"
        reached = share >= SAME_SHARE and same["mean_mask_iou"] >= SAME_IOU
        yield _aim("finds what the published implementation does", figure, reached)
    if name == PLUS and ours:
        yield _aim("under 2 ms an image", f"{ours:.2f} ms", ours < 2)
        stages = model.get("stages", {})
        for part, taken, limit in (
            ("deformable convolution", model.get("deformable"), 0.10),
            ("re-scoring", stages.get("re-scoring"), 0.03),
            ("NMS", stages.get("NMS"), 0.05),
        ):
            if taken is not None:
                aim = f"{part}, {limit:.0%} of the time at most"
                yield _aim(aim, f"{taken / ours:.1%}", taken <= limit * ours)
    if "memory" in model:
        steady, most, process = (
            model["memory"][key] * 2**20 / 1e6 for key in ("device", "device_peak", "process")
        )
        figure = f"{steady:.0f} MB; {most:.0f} MB while warming up"
        yield _aim("under 600 MB of the device", figure, steady < 600)
        yield _aim("with CUDA itself, under 1,500 MB", f"{process:.0f} MB", process < 1500)
    if single and "second warm-up" in model:
        again, first = model["second warm-up"], single["warm_up_seconds"]
        figure = f"{again:.1f} s; {first:.1f} s with what had to be compiled"
        yield _aim("captured in 10 s", figure, again < 10)


def _aim(aim: str, figure: str, reached: bool) -> Row:
    return aim, figure, "yes" if reached else "no"


def _rates(model: Report) -> dict[str, float]:
    """Images per second by batch size."""
    single = model.get("one image", {}).get("milliseconds")
    return ({"one by one": 1000 / single} if single else {}) | model.get("images a second", {})


def _model(name: str, model: Report) -> list[str]:
    notes = []
    if "one image" in model:
        notes.append(f"{model['one image']['instances']} instances")
    if "work" in model:
        notes.append(f"limit {model['work']['limit']:.3f} ms")
    if "agreement" in model:
        same = model["agreement"]
        notes.append(
            f"{same['matched']} of {same['instances']} instances are those of the published "
            f"implementation, with a mean mask IoU of {same['mean_mask_iou']:.3f}"
        )
    rates = ", ".join(f"{rate:.0f} ({size})" for size, rate in _rates(model).items())
    if rates:
        notes.append(f"images a second: {rates}")
    times = {"one image": model["one image"]["milliseconds"]} if "one image" in model else {}
    for key, found in model.get("side by side", {}).items():
        times[f"side by side: {key}"] = found
    times |= model.get("stages", {})
    if "deformable" in model:
        times["deformable instead of plain convolutions"] = model["deformable"]
    rows = [(part, f"{value:.3f}") for part, value in times.items()]
    return [f"**{name}**: {'; '.join(notes)}.", "", *table(("ms", "median"), rows)]


def _compilers(model: str, ways: Report) -> list[str]:
    rows = []
    for way, found in ways.items():
        plain, fast = found["milliseconds"]["plain"], found["milliseconds"]["compiled"]
        figures = (plain, fast, plain / fast, found["seconds"])
        rows.append((way, *(f"{figure:.2f}" for figure in figures)))
    header = (f"{model} by", "plain, ms", "compiled, ms", "times as fast", "ready after, s")
    return table(header, rows)


def _jpeg(found: Report) -> list[str]:
    height, width = found["size"]
    rows = [(name, f"{value:.2f}") for name, value in found["milliseconds"].items()]
    return [
        *table((f"JPEG of {width} x {height}, decoded on", "ms"), rows),
        "",
        f"Between device and host, values differ by {found['mean_difference']:.2f} levels on "
        f"average and {found['largest_difference']} at most.",
    ]


def _precision(precision: dict[str, Report]) -> list[str]:
    return table(
        ("half and float32", "matched", "mean mask IoU", "least", "score", "box, pixels"),
        [
            (
                name,
                f"{found['matched']} of {found['instances']}",
                f"{found['mean_mask_iou']:.4f}",
                f"{found['mask_iou']:.3f}",
                f"{found['score_difference']:.1g}",
                f"{found['box_difference']:.2g}",
            )
            for name, found in precision.items()
        ],
    )


def _kernels(kernels: dict[str, Report]) -> list[str]:
    rows = []
    for name, found in kernels.items():
        cells = [name]
        for each in (found.get("twin"), found.get("kernel")):
            if not each:
                cells += NOT_USED
                continue
            time = f"{each['milliseconds']:.3f}" if "milliseconds" in each else "not measured"
            cells += [time, f"{each['error']:.1g}"]
        rows.append(cells)
    return table(("kernel", "twin, ms", "error", "Triton, ms", "error"), rows)


def _tiles(tiles: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    lines = []
    for name, sizes in tiles.items():
        times = {f"{size}x{rest}": ms for size, of in sizes.items() for rest, ms in of.items()}
        best = sorted(times, key=lambda key: times[key])[:3]
        shown = ", ".join(f"{key} {times[key]:.3f} ms" for key in best)
        lines.append(f"Best tiles (pixels, outputs, inputs, splits, warps) for {name}: {shown}.")
    return lines


def _unmeasured(steps: dict[str, str]) -> list[str]:
    rows = [
        (name, " ".join(text.split()).replace("|", "\\|"))
        for name, text in steps.items()
        if text != "measured"
    ]
    return table(("not measured", "because"), rows)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table, or nothing if there are no rows."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    lines = [*map(line, rows)]
    return [line(header), "|---|" + "---:|" * (len(header) - 1), *lines] if lines else []
