"""What a model gets wrong: the confusion matrix, and the images with the most mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from yolact_ros.data import Dataset, ImageRecord, decode_mask
from yolact_ros.engine import Image, Segmenter, draw_overlay
from yolact_ros.evaluation.confusion import Matches, confusion_matrix, match, plot_confusion
from yolact_ros.evaluation.findings import Findings, Result
from yolact_ros.image_files import write_image


@dataclass(frozen=True)
class Mistakes:
    """Objects and the detections above a score, matched in each image of a data set."""

    images: Sequence[Matches]
    labels: Mapping[int, int]
    """Class of each category id that the data set shares with the model."""
    score: float


def find_mistakes(
    segmenter: Segmenter, dataset: Dataset, findings: Findings, score: float
) -> Mistakes:
    """Match the objects of a data set with what `segmenter` found there above a score."""
    found: dict[int, list[Result]] = {image: [] for image in findings.image_ids}
    for result in findings.results:
        if result["score"] > score:
            found[result["image_id"]].append(result)
    names = segmenter.class_names
    labels = {id_: names.index(name) for name, id_ in findings.categories.items()}
    records = dataset.records(names, findings.has_masks)
    return Mistakes([match(record, found[record.id]) for record in records], labels, score)


def draw_mistakes(segmenter: Segmenter, mistakes: Mistakes, folder: Path, worst: int) -> None:
    """Write confusion.png (the confusion matrix at IoU 0.5) and the `worst` images."""
    names = segmenter.class_names
    counts = confusion_matrix(mistakes.images, mistakes.labels, len(names))
    plot_confusion(counts, names, folder / "confusion.png")
    draw_worst(segmenter, mistakes, folder / "worst", worst)


def draw_worst(segmenter: Segmenter, mistakes: Mistakes, folder: Path, count: int) -> None:
    """Write a PNG (result, ground truth) for each of the `count` images with the most mistakes.

    A mistake is an object that was not found or a detection that matches no object; the file name
    has the number of each. Files of an earlier evaluation are deleted.
    """
    for old in folder.glob("[0-9]*-missed*-wrong*.png"):
        old.unlink()
    counted = torch.tensor(list(mistakes.labels.values()))
    bad = [each for each in mistakes.images if each.missed or each.wrong]
    bad.sort(key=lambda each: -len(each.missed + each.wrong))
    for rank, each in enumerate(bad[:count], start=1):
        image = each.record.read()
        instances = segmenter(image)
        # The score that mask results have, which boxes without masks have too.
        shown = instances.mask_scores > mistakes.score
        shown &= torch.isin(instances.class_ids, counted)  # the others are not wrong
        overlay = draw_overlay(image, instances[shown])
        page = np.concatenate([overlay, _draw_truth(image, each.record)], axis=1)
        numbers = f"missed{len(each.missed)}-wrong{len(each.wrong)}"
        write_image(folder / f"{rank:02d}-{numbers}-{each.record.path.stem}.png", page)


def _draw_truth(image: Image, record: ImageRecord) -> Image:
    result = image.copy()
    for annotation in record.annotations:
        mask = decode_mask(annotation.segmentation, record.height, record.width)
        colour = (160, 160, 160) if annotation.is_crowd else (255, 255, 255)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(result, outlines, -1, colour, 2)
    return result
