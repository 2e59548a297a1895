"""Memory of a process while it trains."""

import resource

import torch

from yolact_ros.training.resources import freed_memory_kept

PIXELS = 16 * 2**20  # 64 MiB of float32


def new_pages():
    """Pages that the system made for ten large tensors, one after the other."""
    torch.ones(PIXELS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(PIXELS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_large_tensors_take_the_memory_of_those_before():
    outside = new_pages()
    with freed_memory_kept():
        assert new_pages() * 5 < outside
    assert new_pages() * 5 > outside, "afterwards it is as before"
