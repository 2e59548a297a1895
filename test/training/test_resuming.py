"""Runs that are broken off, go on, or must not."""

import csv
import dataclasses
import json
import math
import signal
import subprocess
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from yolact_ros.cli.train import read_settings
from yolact_ros.network import load_network
from yolact_ros.training.losses import LossSettings
from yolact_ros.training.module import NonFiniteError
from yolact_ros.training.schedule import learning_rate_factor
from yolact_ros.training.train import (
    LAST_CHECKPOINT,
    WEIGHTS_FILE,
    train,
)


def test_killed_at_any_moment_it_resumes_and_equals_an_unbroken_run(
    settings, tmp_path, losses, arguments, change_schedule
):
    """First as a queue ends it; then while it saves: it does at every iteration, and the file is
    large."""
    settings = dataclasses.replace(
        change_schedule(settings, iterations=6),
        save_every=1,
        losses=LossSettings(masks_per_image=1),  # drawn by lot
    )
    whole = train(settings)
    broken = dataclasses.replace(settings, output=str(tmp_path / "broken"))
    checkpoint = Path(broken.output) / LAST_CHECKPOINT
    for kill in range(2):
        resume = ["--resume"] if kill else []
        before = checkpoint.stat().st_mtime_ns if kill else 0
        process = subprocess.Popen(arguments(broken) + resume, stderr=subprocess.DEVNULL)
        while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
            assert process.poll() is None or process.returncode == 0
            if process.returncode == 0:
                break
            time.sleep(0.005)
        if kill:  # the next one is being written
            partial = checkpoint.with_name("last.ckpt.part")
            while process.poll() is None and not partial.exists():
                time.sleep(0.0005)
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        status = process.wait()
        assert kill or status == 128 + signal.SIGTERM, "a queue takes 0 for the end of the work"
    saved = torch.load(checkpoint, weights_only=True)["global_step"]
    resumed = train(broken, resume=True)
    newest = max(Path(broken.output).glob("version_*"), key=lambda path: int(path.name[8:]))
    assert 0 < saved < settings.schedule.total_iterations, "the kill came before the end"
    assert min(losses(newest, "")) >= saved, "it goes on, and does not begin anew"
    assert losses(broken.output, "version_0/")
    assert losses(settings.output) | losses(broken.output) == losses(settings.output)
    theirs = safetensors.torch.load_file(whole)
    for name, value in safetensors.torch.load_file(resumed).items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=0, msg=name)


def rates(output):
    """The learning rate of each iteration."""
    rows = {}
    for path in sorted(Path(output).glob("version_*/metrics.csv")):
        for row in csv.DictReader(path.open()):
            if row.get("lr-SGD"):
                rows[int(row["step"])] = float(row["lr-SGD"])
    return rows


def test_settings_changed_on_resuming_count_from_the_first_iteration(settings, change_schedule):
    train(change_schedule(settings, iterations=2))
    changed = change_schedule(settings, iterations=4, learning_rate=4e-3, weight_decay=0.1)
    train(changed, resume=True)
    factor = learning_rate_factor(changed.schedule)
    wanted = [changed.schedule.scaled_learning_rate * factor(i) for i in range(8)]
    assert [rates(settings.output)[i] for i in range(4, 8)] == pytest.approx(wanted[4:], rel=1e-6)
    state = torch.load(Path(settings.output) / LAST_CHECKPOINT, weights_only=True)
    assert state["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.1
    assert read_settings(["--config", f"{settings.output}/settings.yaml"]) == (changed, False)


def test_a_run_does_not_go_on_as_another(settings, change_schedule):
    """The refusal names what differs, and the settings of the run stay beside its checkpoint."""
    settings = change_schedule(settings, iterations=1)
    train(settings)
    longer = change_schedule(settings, iterations=2)
    for other, reason in (
        (change_schedule(longer, optimizer="adamw"), "optimizer=adamw .* has sgd"),
        (change_schedule(longer, ema=0.0), "ema=0 .* has averaged weights"),
        (dataclasses.replace(longer, classes=("disc",)), r"class_names=\('disc',\) .* has \("),
        (
            dataclasses.replace(longer, network={**longer.network, "num_prototypes": 8}),
            "num_prototypes=8 .* has 32",
        ),
    ):
        with pytest.raises(ValueError, match=reason):
            train(other, resume=True)
        kept, _ = read_settings(["--config", f"{settings.output}/settings.yaml"])
        assert kept == settings


def test_the_average_follows_the_weights_during_the_warm_up_and_lags_afterwards(
    settings, change_schedule
):
    """The weights of each iteration are in the checkpoint, beside their average."""
    kept = {}
    for iterations in (1, 2, 3, 4):  # one more each time, of two at batch size 4
        train(change_schedule(settings, iterations=iterations, warmup_iterations=5), iterations > 1)
        state = torch.load(Path(settings.output) / LAST_CHECKPOINT, weights_only=True)
        name = "net.head.boxes.weight"
        kept[2 * iterations] = state["current_model_state"][name], state["state_dict"][name]
    for iteration in (2, 4, 6):
        weights, average = kept[iteration]
        assert torch.equal(weights, average)
    assert not torch.equal(kept[2][0], kept[4][0])
    weights, average = kept[8]
    begun = kept[6][0]
    assert 0 < (average - begun).norm() < 0.3 * (weights - begun).norm(), (
        "decay 0.9, two iterations"
    )
    saved = safetensors.torch.load_file(Path(settings.output) / "weights.safetensors")
    assert torch.equal(saved["head.boxes.weight"], average)


def test_an_average_that_begins_on_resuming_counts_the_iterations_before(settings, change_schedule):
    settings = change_schedule(settings, iterations=3, warmup_iterations=5, ema=0.0)
    train(settings)
    train(change_schedule(settings, iterations=4, ema=0.9), resume=True)
    state = torch.load(Path(settings.output) / LAST_CHECKPOINT, weights_only=True)
    name = "net.head.boxes.weight"
    assert not torch.equal(state["current_model_state"][name], state["state_dict"][name])
    assert state["averaging_state"]["n_averaged"] == 8


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a full disk")
@pytest.mark.parametrize("file", [LAST_CHECKPOINT, WEIGHTS_FILE])
def test_a_full_disk_is_named_and_the_last_checkpoint_stays(settings, arguments, file):
    train(settings)
    checkpoint = Path(settings.output) / LAST_CHECKPOINT
    before = checkpoint.read_bytes()
    part = Path(settings.output) / f"{file}.part"
    part.symlink_to("/dev/full")
    more = [*arguments(settings), "--resume", "--schedule.iterations=16"]
    run = subprocess.run(more, capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    reason = f"{Path(settings.output) / file} cannot be written: No space left on device"
    assert run.stderr.splitlines()[-1] == f"yolact train: {reason}"
    assert checkpoint.read_bytes() == before and not part.is_symlink()


def test_an_earlier_run_is_not_overwritten(settings):
    schedule = dataclasses.replace(settings.schedule, iterations=2)
    settings = dataclasses.replace(settings, schedule=schedule)
    train(settings)
    with pytest.raises(FileExistsError, match="--resume"):
        train(settings)


def test_a_run_without_a_checkpoint_begins_anew_and_says_so(settings, capsys, change_schedule):
    """As one that was killed before its first."""
    settings = change_schedule(settings, iterations=1)
    train(settings, resume=True)
    told = f"starting from scratch: there is no {Path(settings.output) / 'last.ckpt'}"
    assert told in capsys.readouterr().out
    train(change_schedule(settings, iterations=2), resume=True)
    assert told not in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run(settings):
    schedule = dataclasses.replace(settings.schedule, learning_rate=100, warmup_iterations=0)
    settings = dataclasses.replace(settings, schedule=schedule, save_every=1)
    with pytest.raises(NonFiniteError, match=r"at iteration \d+ .* are not finite; .*\.png"):
        train(settings)
    kept = load_network(Path(settings.output) / "weights.safetensors")
    assert all(p.isfinite().all() for p in kept.parameters())


def test_weights_that_are_not_finite_take_no_place(settings, monkeypatch, change_schedule):
    """A step can spoil them though the loss was finite: the files from before stay."""
    settings = dataclasses.replace(change_schedule(settings, iterations=4, ema=0), save_every=1)
    step = torch.optim.SGD.step
    taken = []

    def spoil(optimizer, closure=None):
        loss = step(optimizer, closure)
        taken.append(optimizer)
        if len(taken) == 3:
            optimizer.param_groups[0]["params"][-1].data.fill_(math.inf)
        return loss

    monkeypatch.setattr(torch.optim.SGD, "step", spoil)
    with pytest.raises(NonFiniteError, match=r"at iteration 2 net.* is not finite"):
        train(settings)
    kept = torch.load(Path(settings.output) / LAST_CHECKPOINT, weights_only=True)
    assert kept["global_step"] == 2
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_a_run_begun_anew_forgets_the_accuracies_of_the_earlier_one(settings, change_schedule):
    settings = change_schedule(settings, iterations=1)
    settings = dataclasses.replace(settings, val=settings.train)
    train(settings)
    output = Path(settings.output)
    (output / LAST_CHECKPOINT).unlink()
    (output / "validation.jsonl").write_text('{"iteration": 2, "accuracy": 1.0}\n')
    train(settings)
    [entry] = map(json.loads, (output / "validation.jsonl").read_text().splitlines())
    assert entry["iteration"] == 2 and entry["accuracy"] < 1


def test_resuming_needs_no_weights_to_start_from(settings, tmp_path, change_schedule):
    start = tmp_path / "start.safetensors"
    first = change_schedule(settings, iterations=1)
    Path(train(first)).rename(start)
    second = dataclasses.replace(first, start=str(start), output=str(tmp_path / "second"))
    train(second)
    start.unlink()
    assert train(change_schedule(second, iterations=2), resume=True).exists()
