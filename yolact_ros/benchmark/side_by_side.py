"""Our models and others, interleaved, each from an image in memory to masks of its size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from yolact_ros.benchmark.agreement import compare
from yolact_ros.benchmark.contender import Contender, Found
from yolact_ros.benchmark.models import Model
from yolact_ros.benchmark.others import mask_rcnn, ultralytics
from yolact_ros.benchmark.published import published
from yolact_ros.benchmark.report import ContenderReport
from yolact_ros.benchmark.settings import Settings
from yolact_ros.engine import Image, Segmenter
from yolact_ros.engine.download import weights_file
from yolact_ros.network import PUBLISHED, NetworkConfig, Yolact, load_network


def references_of(models: Sequence[Model], settings: Settings) -> dict[str, Contender]:
    """Make the published implementation of each of our models that has one, by our models' names.

    It runs with the same weights on the same device. The weights of exported models cannot be read,
    so these are compared with the first model of their configuration.
    """
    if settings.reference is None:
        return {}
    made: dict[tuple[str, str, torch.device], Contender] = {}
    references: dict[str, Contender] = {}
    for model in sorted(models, key=lambda each: each.is_exported):
        config, device = model.config.name, model.segmenter.device
        key = config, model.weights, device
        same = [contender for other, contender in made.items() if other[0] == config]
        if model.is_exported:
            if same:
                references[model.name] = same[0]
        elif is_published(model.config):
            if key not in made:
                contender = published(
                    settings.reference, _network_of(model), device, settings.score_threshold
                )
                if same:  # with other weights or on another device
                    name = f"{contender.name}, {model.weights} on {device}"
                    contender = replace(contender, name=name)
                made[key] = contender
            references[model.name] = made[key]
    return references


def others_of(settings: Settings, devices: Sequence[torch.device]) -> list[Contender]:
    """Make all requested other implementations, on a GPU if one of our models uses it."""
    image, score = settings.image, settings.score_threshold
    device = next((each for each in devices if each.type == "cuda"), devices[0])
    others = []
    if settings.mask_rcnn:
        others += [mask_rcnn(device, image, fast_nms=fast) for fast in (False, True)]
    return others + [ultralytics(device, image, name, score) for name in settings.ultralytics]


def is_published(config: NetworkConfig) -> bool:
    """Whether a configuration is a published one, apart from its class names.

    A user's network trained from it has its name too, but another size or number of classes.
    """
    published = PUBLISHED.get(config.name)
    if published is None or len(config.class_names) != len(published.class_names):
        return False
    return config.replace(class_names=published.class_names) == published


def _network_of(model: Model) -> Yolact:
    """Load the unmodified network: the segmenter's has been optimised."""
    return load_network(weights_file(model.weights or model.config.name), model.config)


def _to_masks(segmenter: Segmenter) -> Callable[[Image], Found]:
    def segment(image: Image) -> Found:
        found = segmenter(image)
        return Found.of(found)._replace(boxes=found.integer_boxes())

    return segment


@torch.no_grad()
def side_by_side(
    models: Sequence[Model],
    references: Mapping[str, Contender],
    others: Sequence[Contender],
    settings: Settings,
) -> tuple[ContenderReport, ...]:
    """Measure ours and the others, interleaved; return nothing if there are no others."""
    theirs = {f"ours {name}": contender.name for name, contender in references.items()}
    others = [*{each.name: each for each in references.values()}.values(), *others]
    if not others:
        return ()
    ours = [
        Contender(f"ours {model.name}", _to_masks(model.segmenter), model.note) for model in models
    ]
    calls = {each.name: partial(each.segment, settings.image) for each in (*ours, *others)}
    found = {name: call() for name, call in calls.items()}
    timings = settings.clock_of(models[0].segmenter.device)(calls, warm_up=1)

    def report(each: Contender) -> ContenderReport:
        same = theirs.get(each.name)
        return ContenderReport(
            name=each.name,
            note=each.note,
            timing=timings[each.name],
            instances=len(found[each.name].scores),
            speed_up=timings[same].median / timings[each.name].median if same else None,
            agreement=compare(found[each.name], found[same]) if same else None,
        )

    return tuple(report(each) for each in (*ours, *others))
