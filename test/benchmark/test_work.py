"""Arithmetic and memory traffic against what can be counted by hand and was counted before."""

import pytest
import torch
from torch import nn

from yolact_ros.benchmark.work import Ceilings, Layer, Work, count_work, layers_of, measure_ceilings
from yolact_ros.network import PUBLISHED
from yolact_ros.network.deformable import DeformableConv2d


@pytest.mark.parametrize(
    ("model", "multiply_adds"),
    # Thousand millions at 550 x 550, counted with forward hooks on every layer before this
    # benchmark was written, deformable convolutions as plain ones.
    [
        ("yolact_resnet50", 59),
        ("yolact_darknet53", 77),
        ("yolact_base", 82),
        ("yolact_plus_resnet50", 71),
        ("yolact_plus_base", 94),
    ],
)
def test_arithmetic_of_the_published_models(model, multiply_adds):
    assert count_work(PUBLISHED[model]).flops / 2e9 == pytest.approx(multiply_adds, abs=0.5)


def test_a_convolution_counted_by_hand():
    conv = nn.Conv2d(8, 16, 3, padding=1, bias=False, device="meta")
    (layer,) = layers_of(conv, torch.empty(1, 8, 10, 10, device="meta"))
    assert layer == Layer(flops=2 * 8 * 9 * 16 * 100, values=800 + 8 * 9 * 16 + 1600)


def test_a_deformable_convolution_is_counted_as_a_plain_one_beside_its_offsets():
    conv = DeformableConv2d(8, 16).to("meta")
    offsets, convolution = layers_of(conv, torch.empty(1, 8, 10, 10, device="meta"))
    assert offsets.flops == 2 * 8 * 9 * 27 * 100
    assert convolution.flops == 2 * 8 * 9 * 16 * 100


def test_work_grows_with_the_batch_but_weights_are_read_once():
    one, four = (
        count_work(PUBLISHED["yolact_resnet50"]),
        count_work(PUBLISHED["yolact_resnet50"], batch=4),
    )
    assert four.flops == 4 * one.flops
    assert one.bytes < four.bytes < 4 * one.bytes


def test_each_layer_is_limited_by_its_own_ceiling():
    work = Work((Layer(flops=1000, values=1), Layer(flops=1, values=1000)), bytes_per_value=4)
    ceilings = Ceilings(flops=1e6, bytes=4e6)
    assert work.limit(ceilings) == pytest.approx(1 + 1)  # milliseconds


def test_ceilings_are_measured():
    ceilings = measure_ceilings(torch.device("cpu"), torch.float32, size=256, rounds=2)
    assert 0 < ceilings.flops < 1e15
    assert 0 < ceilings.bytes < 1e14
