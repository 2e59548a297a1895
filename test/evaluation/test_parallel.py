"""Several processes find what one finds."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from yolact_ros.cli import main
from yolact_ros.data import read_json

CPU = ["--device", "cpu", "--backend", "torch"]


def workers_of(pid):
    """Processes that multiprocessing has started for another, while that runs."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            parent = int(re.search(r"^PPid:\s*(\d+)", (folder / "status").read_text(), re.M)[1])
            if parent == pid and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.add(folder.name)
    return found


def test_two_processes_give_the_same_numbers(some_people, tmp_path, repository):
    """Started as users do: processes import the file that the command is in."""
    source = some_people(3)
    command = ["eval", f"{source.annotations}:{source.images}", "--worst", "0", *CPU]
    assert main([*command, "--devices", "1", "--output", str(tmp_path / "1")]) == 0
    program = [sys.executable, str(repository / "scripts" / "yolact")]
    options = ["--devices", "2", "--output", str(tmp_path / "2")]
    process, workers = subprocess.Popen([*program, *command, *options]), set()
    while process.poll() is None:
        workers |= workers_of(process.pid)
        time.sleep(0.2)
    assert process.returncode == 0 and len(workers) == 2
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


def test_errors_of_a_process_come_back(some_people, tmp_path, capsys):
    few = some_people(3)
    source = few.annotations
    names = [image["file_name"] for image in read_json(source)["images"]]
    for name in names:
        shutil.copy(few.images / name, tmp_path)
    last = tmp_path / names[-1]
    last.write_bytes(last.read_bytes()[:1000])
    assert main(["eval", f"{source}:{tmp_path}", "--devices", "2", *CPU]) == 1
    assert f"{last} is cut short" in capsys.readouterr().err
    assert main(["eval", str(source), "--devices", "0"]) == 1
    assert "devices=0" in capsys.readouterr().err
