"""What a run learns does not depend on how many processes do it."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch

from yolact_ros.training.train import make_module, train


def test_it_learns_the_same_however_many_processes_load_images(settings, tmp_path, losses):
    """Also where OpenCV had threads before, as whatever decodes or draws gives it."""
    cv2.setNumThreads(4)
    cv2.GaussianBlur(np.ones((2000, 2000, 3), np.float32), (31, 31), 5)
    schedule = dataclasses.replace(settings.schedule, iterations=4)
    alone = dataclasses.replace(settings, schedule=schedule)
    helped = dataclasses.replace(alone, output=str(tmp_path / "helped"), workers=None)
    train(alone)
    train(helped)
    assert losses(helped.output) == losses(alone.output)
    assert len(losses(alone.output)) == 8


def one_machine(command):
    """Two processes that Lightning starts. Of an option given twice the last counts."""
    return [[*command, "--devices=2"]]


def two_machines(command):
    """What docs/training.md has for machines with one device each, both of them this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    start = [*torchrun, "--nnodes=2", "--nproc-per-node=1", "--local-addr=127.0.0.1"]
    meet = ["--rdzv-backend=c10d", "--rdzv-id=yolact", f"--rdzv-endpoint=127.0.0.1:{port}"]
    return [[*start, *meet, "--no-python", "--", *command, "--num_nodes=2"]] * 2


def test_two_processes_learn_what_one_learns(
    settings, tmp_path, losses, arguments, change_schedule
):
    """Same global batch, same losses: the first iterations, before rounding adds up."""
    content = json.loads(Path(settings.train[0]).read_text())
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] > 2]
    path = tmp_path / "some_empty.json"
    path.write_text(json.dumps(content))
    settings = change_schedule(settings, iterations=2)
    settings = dataclasses.replace(
        settings,
        train=(f"{path}:{Path(settings.train[0]).parent / 'images'}",),
        network={**settings.network, "image_size": 256, "mask_rescoring": True},
        freeze_batch_norm=True,
        negatives=True,
    )
    train(settings)
    wanted = list(losses(settings.output).values())
    assert len(wanted) == 4
    start = first_weights(settings)
    ours = safetensors.torch.load_file(Path(settings.output) / "weights.safetensors")
    name = "head.boxes.weight"
    assert 0 < (ours[name] - start[name]).norm() < 0.1 * start[name].norm()
    for commands in (one_machine, two_machines):
        output = tmp_path / commands.__name__
        command = arguments(dataclasses.replace(settings, output=str(output)))
        command += ["--freeze_batch_norm=true", "--negatives=true"]
        assert "MEMBER: 2/2" in run_together(commands(command), output.with_suffix(".log"))
        assert list(losses(output).values()) == pytest.approx(wanted, rel=1e-3)
        theirs = safetensors.torch.load_file(output / "weights.safetensors")
        for name, value in ours.items():
            learned = (value.double() - start[name]).norm()
            assert (theirs[name].double() - value).norm() <= 0.02 * learned + 1e-7, name


@pytest.mark.parametrize("to_all", [False, True])
def test_a_queue_ends_all_processes(settings, arguments, change_schedule, to_all):
    """Wherever they wait for each other; the checkpoint that there is stays."""
    settings = change_schedule(settings, iterations=10_000)
    (command,) = one_machine(arguments(settings))
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while not (Path(settings.output) / "last.ckpt").exists():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        (os.killpg if to_all else os.kill)(process.pid, signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert torch.load(Path(settings.output) / "last.ckpt", weights_only=True)["global_step"] > 0


def first_weights(settings):
    """Those that training begins with."""
    torch.manual_seed(settings.seed)
    return make_module(settings).net.state_dict()


def run_together(commands, log):
    """Run commands that wait for each other, and return what they say on standard error.

    Where one fails the others, which would wait for it, are ended.
    """
    with log.open("w") as file:
        started = [subprocess.Popen(each, stderr=file) for each in commands]
        end = time.monotonic() + 300
        try:
            while any(each.poll() is None for each in started):
                failed = any(each.poll() for each in started)
                assert not failed and time.monotonic() < end, log.read_text()
                time.sleep(0.1)
        finally:
            for each in started:
                each.kill()
                each.wait()
    assert [each.returncode for each in started] == [0] * len(started), log.read_text()
    return log.read_text()
