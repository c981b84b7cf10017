"""benchmarks/gpu_check.sh: a stage that fails or hangs leaves what the others found. The interpreter is a stand-in."""

from __future__ import annotations

import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_check.sh"
STAGES = "build agreement ceilings speed steps scorer sanitizer tests variants train".split()
STAND_IN = """#!/usr/bin/env bash
case "$*" in
  *agreement.py*) {agreement} ;;
  *ceilings.py*) echo ran >>"$OUT/ceilings.txt" ;;
  *zipfile*) mkdir -p "${{!#}}" ;;
  *xdist*) exit 1 ;;
  *) {others} ;;
esac
"""


@pytest.fixture
def check(tmp_path):
    """Run the script with what the agreement stage does; gives (process, output folder)."""

    def run(agreement: str, *words: str, others: str = "exit 0", **environment: str):
        python, out = tmp_path / "python", tmp_path / "out"
        python.write_text(STAND_IN.format(agreement=agreement, others=others))
        python.chmod(0o755)
        folders = {"OUT": str(out), "WORK": str(tmp_path / "work"), "PACK": str(tmp_path / "pack")}
        given = {**os.environ, "PYTHON": str(python), **folders, **environment}
        command = ["bash", str(SCRIPT), "--no-gpu", *words]
        return subprocess.run(command, env=given, capture_output=True, text=True, timeout=60), out

    return run


def verdicts(out: Path) -> dict[str, str]:
    return {line.split()[0]: line[13:27].strip() for line in (out / "stages.txt").read_text().splitlines()}


@pytest.mark.parametrize("agreement, verdict", [("exit 3", "FAILED (3)"), ("exec sleep 40", "out of time")])
def test_others_run(check, agreement, verdict):
    start = time.monotonic()
    done, out = check(agreement, "--only", "agreement,ceilings", LIMIT="2")
    assert done.returncode == 1 and time.monotonic() - start < 30
    assert verdicts(out) == {"agreement": verdict, "ceilings": "passed"}
    assert (out / "ceilings.txt").read_text() == "ran\n"
    with tarfile.open(out / "logs.tar.gz") as logs:
        assert {"./agreement.log", "./ceilings.log"} <= set(logs.getnames())
    assert [line.split()[0] for line in done.stdout.splitlines()[-2:]] == ["agreement", "ceilings"]  # the table is last


def test_every_stage_runs_and_one_screen_shows_them(check, tmp_path):
    """The whole list, with an interpreter that fails in all it is asked: no stage needs another to be reported."""
    cmake = tmp_path / "bin/cmake"  # which would build for minutes
    cmake.parent.mkdir()
    cmake.write_text("#!/bin/sh\nexit 5\n")
    cmake.chmod(0o755)
    path = f"{cmake.parent}:{os.environ['PATH']}"
    done, out = check("exit 3", others="exit 4", TOTAL="50", LIMIT="4", PATH=path)
    assert done.returncode == 1
    assert list(verdicts(out)) == STAGES
    table = done.stdout[done.stdout.rindex("\n\n") :].strip().splitlines()
    assert [line.split()[0] for line in table] == STAGES and len(table) <= 24


def test_the_wheel_built_beforehand_is_used(check, tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/shamisa-0-cp310-abi3-linux_x86_64.whl").touch()
    _, out = check('echo "$PYTHONPATH" >"$OUT/path.txt"', "agreement")
    assert (out / "path.txt").read_text().startswith(str(tmp_path / "work/site"))


def test_resume_runs_only_what_did_not_pass(check):
    check("exit 3", "agreement", "ceilings")
    done, out = check("exit 0", "--resume", "agreement", "ceilings")
    assert done.returncode == 0
    assert verdicts(out) == {"ceilings": "passed", "agreement": "passed"}
    assert (out / "ceilings.txt").read_text() == "ran\n"  # once


def test_total_stops_the_rest(check):
    done, out = check("exec sleep 40", "agreement", "ceilings", TOTAL="2")
    assert done.returncode == 1
    assert verdicts(out) == {"agreement": "out of time", "ceilings": "out of time"}
    assert not (out / "ceilings.txt").exists()


@pytest.mark.parametrize("words, environment", [(["nothing"], {}), (["--only"], {}), ([], {"TOTAL": "soon"})])
def test_wrong_arguments(check, words, environment):
    done, out = check("exit 0", *words, **environment)
    assert done.returncode == 2 and not out.exists()
    assert "stages:" in done.stderr or "TOTAL" in done.stderr
