"""Whole training runs on a small data set."""

import csv
import dataclasses
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import torchvision
from torch import nn

from yolact_ros.data import Annotation, DataError, DataSource, ImageRecord
from yolact_ros.network import (
    EMBEDDED,
    WeightsError,
    build,
    config_of,
    load_network,
    official_name,
    save_weights,
)
from yolact_ros.training import validation
from yolact_ros.training.augmentation import NO_AUGMENTATION, AugmentationSettings
from yolact_ros.training.callbacks import Checkpoints
from yolact_ros.training.module import TrainingModule
from yolact_ros.training.records import anchor_recall, training_data
from yolact_ros.training.schedule import learning_rate_factor
from yolact_ros.training.settings import ScheduleSettings
from yolact_ros.training.start import make_network, start_from
from yolact_ros.training.train import LAST_CHECKPOINT, make_module, remarks, train
from yolact_ros.training.validation import Validation


def test_the_loss_falls_and_the_weights_load(settings, losses):
    schedule = dataclasses.replace(
        settings.schedule, iterations=40, batch_size=8, optimizer="adamw", ema=0
    )
    weights = train(
        dataclasses.replace(
            settings, schedule=schedule, augmentation=NO_AUGMENTATION, save_every=100
        )
    )
    found = losses(settings.output)
    assert list(found) == list(range(40))
    assert sum(found[i] for i in range(35, 40)) < 0.7 * sum(found[i] for i in range(5))
    assert load_network(weights).config.class_names == ("disc", "square")
    (log,) = Path(settings.output).glob("version_0/metrics.csv")
    last = [row for row in csv.DictReader(log.open()) if row["loss"]][-1]
    assert float(last["images_per_second"]) > 0
    assert 0 < float(last["waiting_for_data"]) < 1


def test_waiting_for_data_is_not_what_callbacks_do(settings, monkeypatch, change_schedule):
    settings = change_schedule(settings, iterations=1)
    save = Checkpoints.on_train_batch_end

    def slow(self, *arguments):
        time.sleep(1)
        save(self, *arguments)

    monkeypatch.setattr(Checkpoints, "on_train_batch_end", slow)
    train(settings)
    [path] = Path(settings.output).glob("version_*/metrics.csv")
    waits = [row["waiting_for_data"] for row in csv.DictReader(path.open())]
    assert max(float(wait) for wait in waits if wait) < 0.5


def test_a_short_run_is_logged_too(settings, losses, change_schedule):
    settings = change_schedule(settings, iterations=1)
    train(dataclasses.replace(settings, log_every=20))
    assert losses(settings.output)


def test_names_that_stand_for_nothing_are_refused(settings):
    with pytest.raises(DataError, match=r"shapes\.json has a class dics$"):
        train(dataclasses.replace(settings, classes=("disc", "dics")))
    with pytest.raises(ValueError, match=r"freeze='backbone\.steam' is not allowed"):
        train(dataclasses.replace(settings, freeze=("backbone.steam",)))


def test_what_to_know_of_a_run_is_said_before_it(settings, capsys, change_schedule):
    """One object is as an anchor is, one far too wide, and a crowd does not count."""
    objects = [((0, 0, 40, 40), False), ((0, 0, 80, 8), False), ((0, 0, 9, 9), True)]
    records = [
        ImageRecord(Path("a.png"), i, 80, 160, (Annotation(i, 0, box, None, is_crowd),))
        for i, (box, is_crowd) in enumerate(objects * 3)
    ]
    anchors = torch.tensor([[0.125, 0.25, 0.25, 0.5], [0.5, 0.5, 1, 1]])  # (cx, cy, w, h)
    assert anchor_recall(anchors, records, 0.5) == 0.5
    assert anchor_recall(anchors, records, 0.5, most=3) == 1, "every second one"
    settings = change_schedule(settings, iterations=1, warmup_iterations=1)
    train(settings)
    alike = change_schedule(settings, batch_size=8, warmup_iterations=0)
    out = capsys.readouterr().out
    assert re.search(r"^\d+% of the objects have an anchor of IoU 0\.5", out)
    assert "warmup_iterations" not in out
    scaled = (
        "schedule.batch_size=4: 2 iterations at a learning rate of 0.001, in place of 1 at 0.002"
    )
    assert f"{scaled} with batches of 8\n" in out
    assert len(remarks(alike, make_module(alike))) == 1
    longer = change_schedule(settings, warmup_iterations=settings.schedule.total_iterations)
    assert "the learning rate never reaches its value" in remarks(longer, make_module(longer))[-1]


def test_what_is_frozen_keeps_its_statistics_too(settings, change_schedule):
    settings = change_schedule(settings, iterations=2, batch_size=6)
    torch.manual_seed(settings.seed)
    begun = make_module(settings).net
    whole = train(dataclasses.replace(settings, freeze=("backbone.stem",)))
    net = load_network(whole)
    assert torch.equal(net.backbone.stem[0].weight, begun.backbone.stem[0].weight)
    assert not torch.equal(net.head.boxes.weight, begun.head.boxes.weight)
    assert torch.equal(net.backbone.stem[1].running_mean, torch.zeros(32))
    others = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)][1:]
    assert all(m.running_mean.any() for m in others)


def test_a_device_that_is_not_there_is_named(settings):
    with pytest.raises(ValueError, match="devices"):
        train(dataclasses.replace(settings, devices=0))


def test_accuracy_needs_objects_to_be_found(settings, tmp_path, capsys):
    """Those of crowds alone would make it not a number, which is never better than another."""
    content = json.loads(Path(settings.train[0]).read_text())
    first, *others = content["annotations"]
    for annotation in others:
        annotation["iscrowd"] = 1
    path = tmp_path / "crowds.json"
    path.write_text(json.dumps(content))
    images = Path(settings.train[0]).parent / "images"
    settings = dataclasses.replace(settings, val=(*settings.train, f"{path}:{images}"))
    training_data(settings)
    assert f"{len(others)} of {len(others) + 1} annotations are crowd" in capsys.readouterr().out
    first["iscrowd"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"crowds\.json has no object .* are crowd regions"):
        train(settings)


def test_accuracy_is_measured_on_what_can_be_counted(settings, tmp_path, change_schedule):
    """COCO's own files have boxes without area, which are of no use for training."""
    content = json.loads(Path(settings.train[0]).read_text())
    content["annotations"][0]["bbox"][2] = 0
    path = tmp_path / "flat.json"
    path.write_text(json.dumps(content))
    flat = (f"{path}:{Path(settings.train[0]).parent / 'images'}",)
    settings = change_schedule(settings, iterations=1)
    with pytest.raises(DataError, match="has no area"):
        train(dataclasses.replace(settings, train=flat))
    assert train(dataclasses.replace(settings, val=flat)).exists()


def test_bad_data_stops_the_run_unless_it_is_to_be_skipped(settings, tmp_path, capsys):
    content = json.loads(Path(settings.train[0]).read_text())
    content["annotations"][0]["bbox"] = [90, 90, 50, 50]
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(content))
    images = Path(settings.train[0]).parent / "images"
    schedule = dataclasses.replace(settings.schedule, iterations=2)
    settings = dataclasses.replace(settings, train=(f"{bad}:{images}",), schedule=schedule)
    with pytest.raises(DataError, match=r"bad\.json: annotation 1: .*outside"):
        train(settings)
    assert train(dataclasses.replace(settings, skip_bad=True)).exists()
    assert "1 wrong entries are left out" in capsys.readouterr().out


def test_boxes_alone_are_learned_from_boxes_alone(settings, tmp_path, change_schedule):
    settings = change_schedule(settings, iterations=1)
    content = json.loads(Path(settings.train[0]).read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content))
    images = Path(settings.train[0]).parent / "images"
    source = (f"{path}:{images}",)
    settings = dataclasses.replace(settings, train=source, val=source)
    with pytest.raises(DataError, match=r"annotation 1, 2, .*: it has no mask"):
        train(settings)
    network = settings.network | {"mask_branch": "none"}
    weights = train(dataclasses.replace(settings, network=network))
    assert load_network(weights).config.mask_branch == "none"
    (log,) = Path(settings.output).glob("version_*/metrics.csv")
    columns = log.read_text().splitlines()[0].split(",")
    assert {"boxes", "classes", "semantic"} <= set(columns) and "masks" not in columns
    (line,) = (weights.parent / "validation.jsonl").read_text().splitlines()
    assert 0 <= json.loads(line)["accuracy"] <= 1


def test_what_else_the_loop_can_do(settings, change_schedule, capsys):
    """Of the fc baseline, with a log for TensorBoard and a progress bar."""
    settings = change_schedule(settings, iterations=1)
    network = settings.network | {"mask_branch": "fc"}
    weights = train(dataclasses.replace(settings, network=network, tensorboard=True))
    assert load_network(weights).config.mask_branch == "fc"
    (folder,) = Path(settings.output).glob("version_*")
    assert list(folder.glob("events.out.tfevents.*"))
    assert "masks" in (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    bar = "".join(capsys.readouterr())
    assert re.search(r"2/2 .*<.*classes=\d.*masks=\d.*loss=\d", bar), "losses and time left"


def test_gradients_are_limited(settings, change_schedule, monkeypatch, tmp_path):
    step, norms = torch.optim.SGD.step, []

    def note(optimizer, closure=None):
        loss = step(optimizer, closure)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
        norms.append(torch.cat(gradients).norm().item())
        return loss

    monkeypatch.setattr(torch.optim.SGD, "step", note)
    for clip, name in ((None, "free"), (1.0, "limited")):
        limited = change_schedule(settings, iterations=1, gradient_clip=clip)
        train(dataclasses.replace(limited, output=str(tmp_path / name)))
    assert len(norms) == 4 and max(norms[:2]) > 1.5
    assert max(norms[2:]) < 1.001


def test_it_starts_from_an_official_checkpoint_for_other_classes(tmp_path, capsys):
    config = config_of("yolact_resnet50")
    with torch.device("meta"):
        wanted = build(config).state_dict()
    path = tmp_path / "yolact_resnet50_54_800000.pth"
    torch.save({official_name(n): torch.full(t.shape, 0.25) for n, t in wanted.items()}, path)
    net = build(config.replace(class_names=("cat", "dog")))
    start_from(net, path, config)
    afresh = re.search(r"no weights that fit (.*): these are initialised", capsys.readouterr().out)
    assert afresh
    names = set(afresh[1].split(", "))
    assert {name.partition(".")[0] for name in names} == {"head", "semantic"} and len(names) == 4
    for name, tensor in net.named_parameters():
        assert name in names or bool((tensor == 0.25).all()), name


def test_it_starts_from_a_file_of_the_backbone_alone(tmp_path):
    """As torchvision's ImageNet weights are, downloaded by hand."""
    state = torchvision.models.resnet50(weights=None).state_dict()
    path = tmp_path / "resnet50-0676ba61.pth"
    torch.save(state, path)
    config = config_of("yolact_resnet50")
    net = build(config)
    start_from(net, path, config)
    assert torch.equal(net.backbone.layers[3][2].conv3.weight, state["layer4.2.conv3.weight"])


def test_mixed_precision(settings, losses):
    schedule = dataclasses.replace(settings.schedule, iterations=1)
    # In bfloat16 PyTorch's gradient for maps of a single pixel is not finite on a CPU.
    network = {**settings.network, "image_size": 160}
    settings = dataclasses.replace(settings, schedule=schedule, network=network)
    train(dataclasses.replace(settings, output=f"{settings.output}-32"))
    train(dataclasses.replace(settings, precision="bf16-mixed"))
    wanted, mixed = losses(f"{settings.output}-32")[0], losses(settings.output)[0]
    assert mixed == pytest.approx(wanted, rel=0.05) and mixed != wanted


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_training_on_cuda(settings, change_schedule, losses, precision):
    settings = dataclasses.replace(
        change_schedule(settings, iterations=2, learning_rate=1e-4),
        accelerator="gpu",
        precision=precision,
        val=settings.train,
        network=settings.network | {"image_size": 160},
        workers=1,
    )
    train(settings)
    weights = train(change_schedule(settings, iterations=3), resume=True)
    assert len(losses(settings.output)) == 6, "of half as many images as published"
    state = torch.load(Path(settings.output) / LAST_CHECKPOINT, weights_only=True)
    assert ("MixedPrecision" in state) == (precision == "16-mixed")
    assert all(value.isfinite().all() for value in load_network(weights).state_dict().values())


def test_it_starts_from_weights_for_other_classes(settings, tmp_path, capsys):
    schedule = dataclasses.replace(settings.schedule, iterations=2)
    first = train(dataclasses.replace(settings, schedule=schedule))
    second = dataclasses.replace(
        settings,
        schedule=dataclasses.replace(schedule, learning_rate=1e-9, warmup_iterations=0, ema=0),
        classes=("square",),
        start=str(first),
        output=str(tmp_path / "second"),
        freeze_batch_norm=True,
    )
    a, b = load_network(first), load_network(train(second))
    assert b.config.class_names == ("square",)
    assert "head.classes.weight" in capsys.readouterr().out
    torch.testing.assert_close(a.head.boxes.weight, b.head.boxes.weight, atol=1e-6, rtol=0)
    torch.testing.assert_close(a.backbone.stem[1].running_var, b.backbone.stem[1].running_var)


def test_outputs_that_fit_by_accident_start_afresh(tmp_path, capsys):
    """Four anchors of two logits have as many channels as two of four."""
    small = EMBEDDED.replace(image_size=64, fpn_channels=8, mask_rescoring=False)
    donor = build(small)
    path = tmp_path / "donor.safetensors"
    save_weights(donor, path)
    net = build(small.replace(class_names=("a", "b", "c"), anchor_octaves=1))
    before = net.head.classes.weight.clone()
    assert before.shape == donor.head.classes.weight.shape
    start_from(net, path, small)
    assert torch.equal(net.head.classes.weight, before)
    assert torch.equal(next(net.fpn.parameters()), next(donor.fpn.parameters()))
    assert "head.classes.weight" in capsys.readouterr().out


def test_a_line_that_was_cut_off_takes_no_other_with_it(tmp_path, monkeypatch, fixed_accuracy):
    fixed_accuracy(0.25)
    monkeypatch.setattr(validation, "Segmenter", lambda **_: None)
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    measured = Validation([DataSource.parse("val.json")], weights, every=3, patience=None)
    measured.history_file.write_text('{"iteration": 3, "accu')
    for iteration in (6, 9):
        measured.measure(iteration, torch.device("cpu"))
    assert [entry["iteration"] for entry in measured._history()] == [6, 9]


def test_it_starts_from_weights_by_name(settings, capsys, change_schedule):
    settings = change_schedule(settings, iterations=1)
    with pytest.raises(WeightsError, match=r"start='resnet' is not allowed: .*yolact_base"):
        train(dataclasses.replace(settings, start="resnet"))
    assert train(dataclasses.replace(settings, start="yolact_person_lite")).exists()
    assert "no weights that fit" in capsys.readouterr().out  # other sizes and classes


@pytest.fixture
def fixed_accuracy(monkeypatch):
    """Lets every evaluation have the accuracy that the returned function was called with."""
    monkeypatch.setattr(validation, "table", lambda _: "")

    def measure(value):
        found = SimpleNamespace(masks=SimpleNamespace(overall=SimpleNamespace(ap=value)))
        monkeypatch.setattr(validation, "evaluate", lambda *_: found)

    return measure


def test_a_young_network_that_finds_nothing_is_not_stuck(settings, fixed_accuracy, losses):
    fixed_accuracy(0.0)
    train(dataclasses.replace(settings, val=settings.train, validate_every=1, patience=1))
    assert len(losses(settings.output)) == settings.schedule.total_iterations
    weights = Path(settings.output) / "weights.safetensors"
    assert weights.with_name("best.safetensors").read_bytes() == weights.read_bytes(), "the newest"


def test_accuracy_is_measured_and_training_stops_without_progress(
    settings, losses, fixed_accuracy, capsys
):
    fixed_accuracy(0.25)
    schedule = dataclasses.replace(settings.schedule, iterations=20, learning_rate=1e-9)
    settings = dataclasses.replace(
        settings,
        schedule=schedule,
        val=settings.train,
        validate_every=2,
        patience=1,
        freeze_batch_norm=True,
    )
    train(settings)
    log = Path(settings.output) / "validation.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [entry["iteration"] for entry in entries] == [2, 4]
    assert len(losses(settings.output)) == 4
    said = "stopped: no improvement in the last 1 evaluations (see `patience`)\n"
    assert said in capsys.readouterr().out
    train(settings, resume=True)  # as a queue does that does not know
    assert said in capsys.readouterr().out
    assert len(losses(settings.output)) == 4 and len(log.read_text().splitlines()) == 2
    train(dataclasses.replace(settings, patience=2), resume=True)
    assert len(losses(settings.output)) > 4
    assert (Path(settings.output) / "best.safetensors").exists()
    # What was measured on other data says nothing of these.
    entries = [{"iteration": i, "accuracy": 2.0, "val": ["other.json"]} for i in (2, 4, 6)]
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    before = len(losses(settings.output))
    train(settings, resume=True)
    assert len(losses(settings.output)) > before


@pytest.mark.parametrize(("save_every", "validate_every"), [(2, 1), (3, 2), (100, 3)])
def test_what_is_measured_was_just_saved(
    settings, save_every, validate_every, change_schedule, monkeypatch
):
    """The iteration of each measurement is that of the weights."""
    settings = change_schedule(settings, iterations=2, learning_rate=1e-9)
    settings = dataclasses.replace(
        settings, val=settings.train, save_every=save_every, validate_every=validate_every
    )
    saved = {}

    def note(self, iteration, *_, **__):
        state = torch.load(Path(settings.output) / LAST_CHECKPOINT, weights_only=True)
        saved[iteration] = state["global_step"]

    monkeypatch.setattr(Validation, "measure", note)
    train(settings)
    assert list(saved) == sorted({*range(validate_every, 5, validate_every), 4})
    assert all(step == iteration for iteration, step in saved.items())


def test_another_batch_size_that_freezes_batch_norm_is_told(settings, change_schedule):
    settings = dataclasses.replace(settings, start="imagenet", freeze_batch_norm=None)
    settings = change_schedule(settings, iterations=1)
    train(change_schedule(settings, batch_size=6))
    with pytest.raises(
        ValueError, match=r"keep batch norm frozen .* depends on the images per device"
    ):
        train(change_schedule(settings, batch_size=4, iterations=2), resume=True)


def test_batch_norm_that_never_learned_is_not_frozen(settings):
    trainer = pl.Trainer(logger=False, enable_checkpointing=False)
    for start, learns in (("nothing", True), ("imagenet", False)):
        module = TrainingModule(
            make_network(settings, ("square",)), [], dataclasses.replace(settings, start=start)
        )
        module.trainer = trainer
        module.setup("fit")
        norms = [each for each in module.net.modules() if isinstance(each, nn.BatchNorm2d)]
        assert all(each.training == learns for each in norms)


def test_objects_of_classes_that_the_first_file_lacks_are_told(settings, tmp_path, capsys):
    content = json.loads(Path(settings.train[0]).read_text())
    images = Path(settings.train[0]).parent / "images"
    content["categories"][0]["name"] = "bird"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    settings = dataclasses.replace(settings, train=(*settings.train, f"{other}:{images}"))
    training_data(settings)
    assert "left out are bird " in capsys.readouterr().out
    training_data(dataclasses.replace(settings, train=settings.train[:1], val=(settings.train[1],)))
    assert re.search(r"not measured are bird \d+: the model", capsys.readouterr().out)
    named = dataclasses.replace(settings, classes=("square",), val=(settings.train[1],))
    training_data(named)
    assert "bird" not in capsys.readouterr().out, "left out on purpose"


def test_published_schedule():
    schedule = ScheduleSettings()
    assert (schedule.optimizer, schedule.momentum, schedule.weight_decay) == ("sgd", 0.9, 5e-4)
    assert (schedule.warmup_iterations, schedule.warmup_learning_rate) == (500, 1e-4)
    assert (schedule.ema, schedule.gradient_clip) == (0, None)
    published = {"photometric": True, "expand": 4, "crop": True, "smallest_crop": 0.3}
    published |= {"mirror": True, "smallest_box": 4, "copy_paste": 0}
    assert AugmentationSettings() == AugmentationSettings(**published)
    factor = learning_rate_factor(schedule)
    assert factor(0) == pytest.approx(0.1) and factor(250) == pytest.approx(0.55)
    steps = (500, 279_999, 280_000, 600_000, 700_000, 799_999)
    assert [factor(i) for i in steps] == pytest.approx([1, 1, 0.1, 0.01, 0.001, 0.0001])
    double = dataclasses.replace(schedule, batch_size=16)
    assert (double.scaled_learning_rate, double.total_iterations) == (2e-3, 400_000)
    rate = [double.scaled_learning_rate * learning_rate_factor(double)(i) for i in (0, 250, 500)]
    assert rate == pytest.approx([1e-4, 1.05e-3, 2e-3]), "the warm-up is not scaled"
    assert learning_rate_factor(double)(140_000) == pytest.approx(0.1)
    twelve = dataclasses.replace(schedule, batch_size=12)  # cut to whole iterations, as published
    assert twelve.total_iterations == 533_333
    assert [learning_rate_factor(twelve)(i) for i in (186_665, 186_666)] == pytest.approx([1, 0.1])
    pascal = dataclasses.replace(schedule, iterations=120_000, steps=(0.5, 0.833333))
    factors = [learning_rate_factor(pascal)(i) for i in (99_999, 100_000)]
    assert factors == pytest.approx([0.1, 0.01])
    cosine = learning_rate_factor(dataclasses.replace(schedule, shape="cosine"))
    halfway = (500 + 800_000) // 2
    assert [cosine(i) for i in (250, 500, halfway, 800_000)] == pytest.approx(
        [0.55, 1, 0.5, 0], abs=1e-6
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "iterations=0"),
        ({"ema": 1.5}, r"ema=1\.5"),
        ({"steps": (0.5, 2)}, r"steps=\(0\.5, 2\)"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        ScheduleSettings(**changes)


@pytest.mark.parametrize(
    ("optimizer", "wanted"), [("sgd", {"momentum": 0.8}), ("adamw", {"betas": (0.8, 0.999)})]
)
def test_optimizers_take_their_settings(settings, change_schedule, optimizer, wanted):
    changed = change_schedule(settings, optimizer=optimizer, momentum=0.8, weight_decay=0.01)
    (made,), _ = make_module(changed).configure_optimizers()
    wanted = {**wanted, "weight_decay": 0.01}
    assert {name: made.param_groups[0][name] for name in wanted} == wanted


def test_the_best_weights_are_kept_and_progress_is_seen(tmp_path, monkeypatch):
    """Of three accuracies; what they are measured by is tested elsewhere."""
    weights, accuracies = tmp_path / "weights.safetensors", iter((0.2, 0.5, 0.3))

    def evaluated(*_):
        return SimpleNamespace(masks=SimpleNamespace(overall=SimpleNamespace(ap=next(accuracies))))

    monkeypatch.setattr(validation, "Segmenter", lambda **_: None)
    monkeypatch.setattr(validation, "table", lambda _: "")
    monkeypatch.setattr(validation, "evaluate", evaluated)
    callback = Validation([DataSource(Path("a.json"))], weights, 1, 2)
    for i in (1, 2, 3):
        weights.write_bytes(bytes([i]))
        callback.measure(i, torch.device("cpu"))
        assert not callback._is_stuck()
    assert (tmp_path / "best.safetensors").read_bytes() == b"\2"
    callback.patience = 1
    assert callback._is_stuck()
    entries = [{"iteration": i, "accuracy": i / 10, "val": ["a.json"]} for i in (1, 2, 3)]
    callback.history_file.write_text("".join(json.dumps(each) + "\n" for each in entries))
    assert not callback._is_stuck(), "it rises"
    with callback.history_file.open("a") as file:
        file.write('{"iteration": 4, "accu')  # the process was killed
    assert len(callback._history()) == 3
