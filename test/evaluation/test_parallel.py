"""Several processes find what one finds."""

import json
import shutil
import subprocess
import sys

import pytest

from yolact_ros.cli import main
from yolact_ros.data import read_json

CPU = ["--device", "cpu", "--backend", "torch"]


def test_two_processes_give_the_same_numbers(some_people, tmp_path, repository):
    """Started as users do: processes import the file that the command is in."""
    source = some_people(3)
    for devices in ("1", "2"):
        command = ["eval", f"{source.annotations}:{source.images}", "--output"]
        options = ["--devices", devices, "--worst", "0", *CPU]
        program = [sys.executable, str(repository / "scripts" / "yolact")]
        subprocess.run([*program, *command, str(tmp_path / devices), *options], check=True)
    for name in ("masks.json", "boxes.json"):
        alone, together = (json.loads((tmp_path / n / name).read_text()) for n in ("1", "2"))
        assert [r["image_id"] for r in alone] == [r["image_id"] for r in together]
        # Sums over another number of threads round differently.
        scores = [r["score"] for r in together]
        assert [r["score"] for r in alone] == pytest.approx(scores, abs=1e-5) and len(scores) >= 3
    alone, together = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("1", "2"))
    for kind in ("masks", "boxes"):
        assert alone[kind] == pytest.approx(together[kind], abs=1e-6)
    assert alone["masks"]["ap50"] > 0.5


def test_errors_of_a_process_come_back(shared, tmp_path, capsys):
    source = shared / "data" / "pennfudan" / "val.json"
    if not source.exists():
        pytest.skip(f"needs {source}")
    names = [image["file_name"] for image in read_json(source)["images"]]
    for name in names:
        shutil.copy(source.parent / "images" / name, tmp_path)
    last = tmp_path / names[-1]
    last.write_bytes(last.read_bytes()[:1000])
    assert main(["eval", f"{source}:{tmp_path}", "--devices", "2", *CPU]) == 1
    assert f"{last} is cut short" in capsys.readouterr().err
    assert main(["eval", str(source), "--devices", "0"]) == 1
    assert "devices=0" in capsys.readouterr().err
