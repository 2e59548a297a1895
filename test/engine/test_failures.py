"""Too little memory, and devices that are gone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from yolact_ros.engine import DeviceLostError, DeviceMemoryError, Segmenter
from yolact_ros.engine.failures import (
    MemoryNeed,
    detect_lost_device,
    is_out_of_memory,
    responds,
)


@pytest.fixture
def images(reference_weights) -> list[np.ndarray]:
    return [reference_weights.image(60, 60 + 10 * i, seed=i) for i in range(5)]


ON_CUDA = torch.cuda.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of …"
)
ON_CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 1610612736 bytes. Error code 12 (Cannot allocate memory)"
)


def limit_batches(segmenter: Segmenter, most: int, error: Exception = ON_CUDA) -> list[int]:
    """Make the network fail for larger batches; returns the sizes that it was given.

    The error is PyTorch's own, and raised by the network.
    """
    given: list[int] = []

    def check(images: torch.Tensor):
        given.append(len(images))
        if len(images) > most:
            raise error
        return run(images)

    run = segmenter.runtime.run
    segmenter.runtime = replace(segmenter.runtime, run=check)
    return given


@pytest.mark.parametrize("error", [ON_CUDA, ON_CPU], ids=["cuda", "cpu"])
def test_a_batch_too_large_is_segmented_in_parts(small_segmenter, images, error):
    expected = small_segmenter(images)
    given = limit_batches(small_segmenter, most=2, error=error)
    with pytest.warns(RuntimeWarning, match="batches of 5: an image takes 307 MiB .* 3 images at"):
        found = small_segmenter(images)
    assert given == [5, 3, 2, 1, 2]
    # From then on no batch is tried that is known not to fit.
    given.clear()
    again = small_segmenter(images)
    assert given == [2, 2, 1]
    for ours, theirs, alone in zip(found, again, expected, strict=True):
        torch.testing.assert_close(ours.boxes, alone.boxes)
        assert torch.equal(theirs.class_ids, alone.class_ids)


def test_one_image_too_large(small_segmenter, images):
    limit_batches(small_segmenter, most=0)
    with pytest.raises(DeviceMemoryError, match=r"1536 MiB or more.*image_size \d+, not 96"):
        small_segmenter(images[0])


@pytest.mark.parametrize("free, size", [(1000, 544), (250, 256), (10, 64), (5000, 544)])
def test_the_network_that_would_fit(free, size):
    assert MemoryNeed(images=2, bytes=2 * 1000, free=free).image_size(550) == size


def test_what_pytorch_says_on_a_cpu():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    need = MemoryNeed.of(raised.value, 2, torch.device("cpu"), 0)
    assert need.bytes == 1 << 50 and "takes 536870912 MiB or more" in str(need)


def test_errors_of_a_device_that_answers_stay_what_they_are():
    device = torch.device("cpu")
    assert responds(device)
    for error in (RuntimeError("a bug"), torch.cuda.OutOfMemoryError("full")):
        with pytest.raises(type(error), match=str(error)), detect_lost_device(device):
            raise error


@pytest.mark.parametrize(
    "error, is_it",
    [
        (torch.cuda.OutOfMemoryError("full"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (MemoryError("Unable to allocate 1.00 PiB for an array"), True),
        (RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator"), True),
        (RuntimeError("out of resource: shared memory, Required: 262144"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
    ids=str,
)
def test_too_little_memory_by_any_name(small_segmenter, images, error, is_it):
    assert is_out_of_memory(error) == is_it
    run, device = small_segmenter.runtime.run, torch.device("cuda:7")
    with pytest.raises(type(error) if is_it else DeviceLostError), detect_lost_device(device):
        raise error

    def check(batch: torch.Tensor):
        if len(batch) > 1:
            raise error
        return run(batch)

    small_segmenter.runtime = replace(small_segmenter.runtime, run=check)
    if is_it:
        with pytest.warns(RuntimeWarning, match="batches of 2"):
            assert len(small_segmenter(images[:2])) == 2
    else:
        with pytest.raises(RuntimeError, match=str(error)):
            small_segmenter(images[:2])


def test_a_lost_device(small_segmenter, images):
    device = torch.device("cuda:7")  # no machine of the tests has so many
    assert not responds(device)
    with pytest.raises(DeviceLostError, match="cuda:7 is lost: CUDA error"):  # noqa: SIM117
        with detect_lost_device(device):
            raise RuntimeError("CUDA error: unspecified launch failure\nDevice-side …")
    # As a segmenter finds it: the first thing it wants of the device fails.
    small_segmenter.runtime = replace(small_segmenter.runtime, device=device)
    with pytest.raises(DeviceLostError, match="cuda:7 is lost"):
        small_segmenter(images[0])


def test_warm_up_and_submit(small_segmenter, images):
    given = limit_batches(small_segmenter, most=3)
    small_segmenter.warm_up((48, 64), batch_sizes=(1, 3))
    assert given == [1, 3]
    submitted = [small_segmenter.submit(images[:2]), small_segmenter.submit(images[2:4])]
    assert given == [1, 3, 2, 2]  # on a CPU all is done at once
    expected = small_segmenter(images[:2]) + small_segmenter(images[2:4])
    assert all(each.done() for each in submitted)
    found = [each for batch in submitted for each in batch.result().instances]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.boxes, theirs.boxes) and torch.equal(ours.masks, theirs.masks)
    assert small_segmenter.submit([]).result().instances == []


def test_a_submitted_batch_that_is_too_large_comes_in_parts(small_segmenter, images):
    expected = small_segmenter(images)
    given = limit_batches(small_segmenter, most=2)
    with pytest.warns(RuntimeWarning, match="batches of 5"):
        first = small_segmenter.submit(images)
    second = small_segmenter.submit(images)
    assert given == [5, 3, 2, 1, 2, 2, 2, 1]
    for submitted in (second, first):
        found, stages = submitted.result()
        assert [len(each) for each in found] == [len(each) for each in expected]
        assert min(stages.preprocess, stages.network, stages.detection) > 0
    with pytest.raises(DeviceMemoryError, match="image_size"):
        limit_batches(small_segmenter, most=0)
        small_segmenter.submit(images[:1])
