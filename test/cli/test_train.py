"""`yolact train`: settings from a YAML file and the command line."""

import dataclasses
import re
import shlex

import pytest
import yaml

from yolact_ros.cli import main
from yolact_ros.cli.train import read_settings
from yolact_ros.network import NetworkConfig
from yolact_ros.training.settings import TrainingSettings
from yolact_ros.training.start import make_network


def test_options_win_over_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    content = {
        "train": ["a.json", "b.json:/images"],
        "network": {"image_size": 400},
        "schedule": {"iterations": 50, "shape": "cosine"},
    }
    path.write_text(yaml.safe_dump(content))
    words = [
        "--config",
        str(path),
        "--schedule.iterations=7",
        "--losses.matching.crowd_overlap=0.5",
    ]
    settings, resume = read_settings([*words, "--resume"])
    assert resume
    assert (settings, resume) == read_settings([*words[2:], "--resume", *words[:2]])
    assert settings.train == ("a.json", "b.json:/images")
    assert (settings.schedule.iterations, settings.schedule.shape) == (7, "cosine")
    assert settings.network == {"image_size": 400}
    assert settings.losses.matching.crowd_overlap == 0.5
    assert settings.schedule.learning_rate == 1e-3, "the published default"
    settings, _ = read_settings(["--network.num_prototypes=8", f"--config={path}"])
    assert settings.network == {"image_size": 400, "num_prototypes": 8}
    settings, _ = read_settings(["--network={num_prototypes: 8}", f"--config={path}"])
    assert settings.network == {"num_prototypes": 8}


def test_without_options_the_recipe_is_the_published_one():
    settings, resume = read_settings(["--train=[a.json]"])
    assert settings == TrainingSettings(train=("a.json",)) and not resume


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--skip-bad"], True),
        (["--skip_bad"], True),
        (["--skip-bad", "--seed", "3"], True),
        (["--skip-bad=false"], False),
        (["--skip-bad", "false"], False),
        (["--skip_bad=true"], True),
    ],
)
def test_switches_need_no_value_and_may_have_dashes(words, expected):
    settings, _ = read_settings(["--train=[my-data.json]", *words, "--schedule.batch-size=2"])
    assert settings.skip_bad is expected and settings.schedule.batch_size == 2
    assert settings.train == ("my-data.json",)


def test_the_shipped_file_is_good(repository):
    path = repository / "config" / "train" / "person.yaml"
    settings, _ = read_settings(["--config", str(path)])
    assert settings.classes == ("person",) and len(set(settings.train)) == 3
    # The commands in its head are those that made the weights.
    head = path.read_text().partition("\ntrain:")[0].replace("#", " ").replace("\\\n", " ")
    lines = head.replace("config/train/person.yaml", str(path)).splitlines()
    first, second = (shlex.split(line)[2:] for line in lines if "yolact train" in line)
    settings, _ = read_settings(first)
    assert settings.network == {"image_size": 352} and settings.schedule.iterations == 6000
    weights = f"{settings.output}/weights.safetensors"
    settings, _ = read_settings(second)
    assert settings.start == weights and settings.network == {}


def test_the_documented_command_is_good(repository):
    """Its anchors fit objects that lie as well as those that stand."""
    text = (repository / "docs" / "training.md").read_text().replace("\\\n", " ")
    (line,) = (line for line in text.splitlines() if "--config config" in line)
    words = shlex.split(line.replace("config/train", str(repository / "config" / "train")))[2:]
    settings, _ = read_settings(words)
    network = make_network(settings, ("fig", "date", "nut"))
    assert network.config.image_size == 352 and network.config.anchor_ratios == (1, 0.5, 2)
    parameters = [name for name, _ in network.named_parameters()]
    assert all(any(name.startswith(each) for name in parameters) for each in settings.freeze)
    settings, _ = read_settings([*words, "--network.image_size=480"])
    assert settings.network == {"image_size": 480, "anchor_ratios": [1, 0.5, 2]}


@pytest.mark.parametrize(
    "words",
    [["--train=a.json"], ["--train", "a.json"], ["--train=[a.json]"], ["--train", "[a.json]"]],
)
def test_one_file_needs_no_brackets(words):
    settings, _ = read_settings([*words, "--val", "lr=1/b.json", "--skip-bad"])
    assert (settings.train, settings.val) == (("a.json",), ("lr=1/b.json",)) and settings.skip_bad


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train=[a.json]", "--schedule.batch_size=0"], "batch_size=0 is not allowed"),
        (["--train=[a.json]", "--schedule.optimizer=adam"], "Got value: adam"),
        (["--train=[a.json]", "--rate=1"], "--rate"),
        (["--train=a.json", "--train=b.json"], "--train is given twice"),
        ([], "required: train"),
        (
            ["--train=a.json", "--network={image_sise: 64}"],
            "unknown network settings",
        ),
        (["--train=a.json", "--network={class_names: [cat]}"], "name the classes in `classes`"),
        (["--train=a.json", "--output=/dev/null/x"], "/dev/null/x"),
    ],
)
def test_bad_settings_are_named(words, message, capsys):
    try:
        status = main(["train", *words])
    except SystemExit as end:  # what the parser itself refuses
        status = end.code
    assert status != 0
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_file_is_named(tmp_path, capsys):
    words = [f"--train=[{tmp_path}/no.json]", f"--output={tmp_path}", "--start=nothing"]
    assert main(["train", *words]) == 1
    assert "no.json cannot be read" in capsys.readouterr().err


def test_the_help_says_what_every_setting_means(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    printed = capsys.readouterr().out
    settings = printed.partition("One training run:")[2]
    assert "COCO-format files to measure accuracy on during the training. (type" in settings
    options = [" ".join(text.split()) for text in re.split(r"\n  (?=--)", settings)[1:]]
    assert len(options) > 40
    for text in options:
        assert not re.match(r"\S+ \S+ \((type|default)", text), f"no meaning: {text}"


def test_every_field_of_the_network_is_documented(repository):
    text = (repository / "docs" / "training.md").read_text()
    table = text.partition("| field of `network` | what |")[2].partition("\n\n")[0]
    named = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    fields = {field.name for field in dataclasses.fields(NetworkConfig)}
    assert set(named) == fields - {"class_names"}, "those are the setting `classes`"
