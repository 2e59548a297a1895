"""What `gpu_check.py` found, as Markdown, beside what was aimed at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Report = dict[str, Any]


def to_markdown(report: Report) -> str:
    machine = ", ".join(f"{name}: {value}" for name, value in report["machine"].items())
    lines = [f"{machine}; all took {report['seconds']:.0f} s."]
    if "ceilings" in report:
        ceilings = report["ceilings"]
        flops, moved = ceilings["flops"] / 1e12, ceilings["bytes"] / 1e9
        lines.append(f"Ceilings: {flops:.1f} TFLOP/s, {moved:.0f} GB/s.")
    lines += ["", *_table(("aim", "figure", "reached"), aims(report))]
    for name, part in (
        ("models", _models),
        ("compilers", _compilers),
        ("precision", _precision),
        ("kernels", _kernels),
    ):
        if report.get(name):
            lines += ["", *part(report[name])]
    return "\n".join(lines)


def aims(report: Report) -> list[tuple[str, str, str]]:
    """Each aim, what was measured and whether that is enough."""
    rows = []
    models: dict[str, Report] = report["models"]
    for name, model in models.items():
        times = model["milliseconds"]
        if "published" in times:
            ratio = times["published"] / times["ours"]
            rows.append(_aim(f"{name}: 10 times the published rate", f"{ratio:.1f}", ratio >= 10))
    if "yolact_plus_resnet50" in models:
        model = models["yolact_plus_resnet50"]
        times, stages = model["milliseconds"], model["stages"]
        ours = times["ours"]
        rows.append(_aim("yolact_plus_resnet50: under 2 ms an image", f"{ours:.2f} ms", ours < 2))
        for part, taken, limit in (
            ("deformable convolution", model["deformable"], 0.10),
            ("re-scoring", stages.get("re-scoring", 0.0), 0.03),
            ("NMS", stages["NMS"], 0.05),
        ):
            aim = f"yolact_plus_resnet50: {part}, {limit:.0%} of the time at most"
            rows.append(_aim(aim, f"{taken / ours:.1%}", taken <= limit * ours))
    if "yolact_resnet50" in models:
        model = models["yolact_resnet50"]
        rate, share = max(model["images_per_second"].values()), model["share_of_matrix_rate"]
        rows.append(_aim("yolact_resnet50: over 1,500 images a second", f"{rate:.0f}", rate > 1500))
        rows.append(_aim("yolact_resnet50: 35% of the matrix rate", f"{share:.0%}", share >= 0.35))
    for name, model in models.items():
        if model["memory"] is not None:
            taken = model["memory"]["device"] * 2**20 / 1e6
            rows.append(_aim(f"{name}: under 600 MB of the device", f"{taken:.0f} MB", taken < 600))
        warm_up = model["warm_up_seconds"]
        rows.append(_aim(f"{name}: captured in 10 s", f"{warm_up:.1f} s", warm_up < 10))
    for name, found in report["precision"].items():
        iou, matched = found["mean_mask_iou"], f"{found['matched']} of {found['instances']}"
        rows.append(
            _aim(
                f"{name}: half precision, mask IoU 0.99", f"{iou:.4f}, {matched}", found["harmless"]
            )
        )
    return rows


def _aim(aim: str, figure: str, reached: bool) -> tuple[str, str, str]:
    return aim, figure, "yes" if reached else "no"


def _models(models: dict[str, Report]) -> list[str]:
    lines = []
    for name, model in models.items():
        rates = ", ".join(f"{rate:.0f} ({n})" for n, rate in model["images_per_second"].items())
        lines += [
            f"**{name}**: {model['instances']} instances; limit {model['limit']:.3f} ms; images a "
            f"second by batch size: {rates}.",
            "",
            *_table(
                ("ms", "median"),
                [
                    (part, f"{value:.3f}")
                    for part, value in (model["milliseconds"] | model["stages"]).items()
                ],
            ),
            "",
        ]
    return lines


def _compilers(compilers: dict[str, Report]) -> list[str]:
    lines = []
    for model, found in compilers.items():
        times, seconds = found["milliseconds"], found["seconds"]
        rows = [
            (name, f"{value:.3f}", f"{times['torch'] / value:.2f}", f"{seconds[name]:.1f}")
            for name, value in times.items()
        ]
        rows += [(name, text, "", "") for name, text in found["problems"].items()]
        lines += _table((f"{model} by", "ms an image", "times as fast", "ready after, s"), rows)
    return lines


def _precision(precision: dict[str, Report]) -> list[str]:
    return _table(
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
    tiles: dict[str, dict[str, float]] = kernels.get("tiles", {})
    rows = []
    for name, found in kernels.items():
        if name != "tiles":
            values = [found.get(kind) for kind in ("twin", "kernel")]
            cells = [
                cell
                for each in values
                for cell in (
                    ("", "")
                    if each is None
                    else (f"{each['milliseconds']:.3f}", f"{each['error']:.1g}")
                )
            ]
            rows.append((name, *cells))
    lines = _table(("kernel", "twin, ms", "error", "Triton, ms", "error"), rows)
    for name, times in tiles.items():
        best = sorted(times, key=lambda key: times[key])[:3]
        shown = ", ".join(f"{key} {times[key]:.3f} ms" for key in best)
        lines += ["", f"Best tiles (pixels, outputs, inputs, splits, warps) for {name}: {shown}."]
    return lines


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    return [line(header), "|---|" + "---:|" * (len(header) - 1), *map(line, rows)]
