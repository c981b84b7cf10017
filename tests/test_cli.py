"""The commands as one: words of a fault, and what Ctrl-C leaves."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

import shamisa
from shamisa import cli
from shamisa.data import dead_leaves


def test_errors_and_interrupts_are_one_line(capsys):
    def fail(error: BaseException):
        raise error

    assert cli.guard("score", lambda: 1, "nothing") == 1 and not capsys.readouterr().err
    assert cli.guard("score", lambda: fail(ValueError("a\udcff")), "nothing") == 2
    assert capsys.readouterr().err == "shamisa score: a\\xff\n"
    assert cli.guard("score", lambda: fail(KeyboardInterrupt()), "nothing was written") == 130
    assert capsys.readouterr().err == "shamisa score: interrupted; nothing was written\n"
    with pytest.raises(KeyError):  # a fault of the program keeps its traceback
        cli.guard("score", lambda: fail(KeyError("x")), "nothing")


@pytest.mark.parametrize(
    ("words", "where", "message"),
    [
        (
            "probe --checkpoint statistics --labels x.csv",
            "probe.read_source",
            "kept only with --cache DIR; start it again",
        ),
        ("probe --checkpoint statistics --labels x.csv --cache C", "probe.read_source", "features so far are in C"),
        ("score photo.png --checkpoint R --regressor F", "score.gather", "continue with --resume --out scores.csv"),
        ("export --checkpoint R --regressor F --out x.pt2", "scorer.load_quality_net", "nothing was written"),
        ("data verify photos", "data.__main__.open_photos", "nothing was written"),
        ("data pack photos --out shards", "data.__main__.open_photos", "shards was not made; start it again"),
        ("distort photo.png --out sheet.png", "sheet.read_photo", "nothing was written"),
        ("bench --out bench.json --quiet", "bench.make_cases", "nothing was written"),
        ("train --out run", "train.Trainer", "nothing was made"),
    ],
)
def test_ctrl_c_anywhere(words, where, message, tmp_path, monkeypatch, capsys):
    module, _, name = where.rpartition(".")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(import_module(f"shamisa.{module}"), name, interrupt)
    assert cli.main(words.split()) == 130
    told = capsys.readouterr().err
    assert told.startswith(f"shamisa {words.split()[0]}: interrupted; ") and told.count("\n") == 1 and message in told
    assert not list(tmp_path.iterdir())


def launch(words: list[str], folder: Path) -> subprocess.Popen:
    path = os.pathsep.join([str(Path(shamisa.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # these tests may have been started in the background, where a shell has SIGINT ignored, and a child inherits that
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_at_a_terminal_reaches_workers_too(tmp_path, workers):
    """The whole process group is asked, as a terminal does."""
    (tmp_path / "photos").mkdir()
    Image.fromarray(dead_leaves(0, 128).permute(1, 2, 0).numpy()).save(tmp_path / "photos" / "0.png")
    for i in range(1, 10000):
        os.link(tmp_path / "photos" / "0.png", tmp_path / "photos" / f"{i}.png")
    command = ["shamisa.data", "pack", "photos", "--out", "shards", "--workers", str(workers), "--quiet"]
    process = launch(command, tmp_path)
    limit = time.monotonic() + 300  # a busy machine imports torch slowly
    while not (tmp_path / "shards.partial").exists():  # photographs are being read
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    err = process.communicate(timeout=300)[1]
    assert process.returncode == 130 and err == "shamisa data: interrupted; shards was not made; start it again\n"
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]
