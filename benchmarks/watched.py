"""What a command and all processes below it use: CPU seconds, and memory of each, read from /proc while they run (Linux)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> tuple[int, int, float] | None:
    """(parent, start time in ticks, CPU seconds) of a process; None where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), int(fields[19]), (int(fields[11]) + int(fields[12])) / _TICK


def _title(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
    except OSError:
        return ""
    return (
        re.sub(r"\)\.\w+$", ")", words[0].rpartition("/")[2]) if words else ""
    )  # Ray adds the method that an actor runs


def cpu_seconds(pid: int) -> float:
    """Of one process; 0 where it is gone."""
    found = _stat(pid)
    return found[2] if found else 0.0


def memory(pid: int) -> dict[str, float] | None:
    """MiB of a process: resident, proportional (shared pages divided by those who share them), private; None: gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    if "Rss" not in kib:
        return None
    private = kib["Private_Clean"] + kib["Private_Dirty"]
    return {"rss": kib["Rss"] / 1024, "pss": kib["Pss"] / 1024, "private": private / 1024}


class Watched:
    """A command in a session of its own, looked at every ``every`` seconds until it ends.

    A process counts from when it is first seen below the command, also after its parent has ended; what it used since the
    last look before its end is lost, which is why the figures of short commands are too low.
    """

    def __init__(self, command: list[str], every: float = 0.25, **options) -> None:
        self.cpu: dict[tuple[int, int], float] = {}  # (pid, start) -> seconds
        self.peak: dict[str, dict[str, float]] = {}  # title -> largest memory of one process with it
        self.titles: dict[tuple[int, int], str] = {}
        self.every, self.begun = every, time.monotonic()
        self.process = subprocess.Popen(command, start_new_session=True, **options)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        turn = 0
        while not self._ended.wait(self.every):
            self.look(with_memory=turn % 20 == 0)  # reading it costs milliseconds of each process
            turn += 1

    def look(self, with_memory: bool = False) -> None:
        """Note what all processes of the tree have used."""
        every = {int(name): stat for name in os.listdir("/proc") if name.isdigit() and (stat := _stat(int(name)))}
        below = {self.process.pid} | {pid for pid, _ in self.cpu}
        while more := {pid for pid, stat in every.items() if stat[0] in below and pid not in below}:
            below |= more
        for pid in below:
            if (stat := every.get(pid)) is None:
                continue
            key = (pid, stat[1])
            if pid != self.process.pid and key not in self.cpu and stat[0] not in below:
                continue  # another process that got the number of one that ended
            self.cpu[key] = stat[2]
            if with_memory or key not in self.titles:
                self.titles[key] = _title(pid)
            if with_memory and (held := memory(pid)):
                top = self.peak.setdefault(self.titles[key], held)
                if held["pss"] > top["pss"]:
                    self.peak[self.titles[key]] = held

    def alive(self, title: str = "") -> list[int]:
        """Ids of the processes of the tree whose title begins so."""
        now = [(pid, stat[1]) for pid, _ in list(self.cpu) if (stat := _stat(pid))]
        return [key[0] for key in now if key in self.cpu and _title(key[0]).startswith(title)]

    def wait(self) -> int:
        """The command's exit status, once it has ended."""
        status = self.process.wait()
        self._ended.set()
        self._thread.join()
        return status

    def kill(self) -> None:
        """SIGKILL to the command itself, then to what it left."""
        self.look()
        os.kill(self.process.pid, signal.SIGKILL)
        self.wait()
        for pid in self.alive():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    @property
    def cpu_seconds(self) -> float:
        """Of all its processes."""
        return sum(self.cpu.values())
