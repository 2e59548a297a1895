"""Memory of the processes of a training."""

import json
import subprocess
import sys

# In a process of its own: what else a process did with its memory decides, too.
PROGRAM = """
import resource

import torch

from yolact_ros.training.resources import freed_memory_kept

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = new_pages()
with freed_memory_kept():
    print([usual, new_pages()])
"""


def test_large_tensors_take_the_memory_of_those_before():
    """Pages that the system makes for twenty of 64 MiB, one after the other.

    Not for the first alone: what is small may take a part of the place, which a quarter of them
    then miss.
    """
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    usual, kept = json.loads(done.stdout)
    assert kept * 2 < usual
