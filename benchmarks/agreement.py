"""Every op on a GPU against the same op on the CPU: ``python3 benchmarks/agreement.py [--out FILE]``.

Without a GPU: the compiled CPU kernels against the reference. Prints a line per case: largest difference as a share of the
largest value, samples that differ, and the verdict against the tolerance that the tests state. On a GPU also whether the
case waits for the device (``torch.cuda.set_sync_debug_mode("error")``) and whether a CUDA graph of it gives the same bits;
cases that are part of a training step must do neither and both.

The cases run in a process of their own: where one crashes it or hangs, it is named, and a fresh process goes on with the
next. Exits with 1 on disagreement, or if an op with kernels on both sides was not compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from agreement_cases import Call, Case, cases
from measure import Reference
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from shamisa import ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# until the first row of a process, and between two: a kernel that hangs is stopped
FIRST_SECONDS, CASE_SECONDS = 60.0, 20.0
STARTS = 8  # processes at most


class Compared(TorchDispatchMode):
    """Inside, the names of the package's ops that run are noted, the backwards too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        space, _, name = function._schema.name.partition("::")
        if space == "shamisa":
            self.names.add(name)
        return function(*args, **(kwargs or {}))


def judge(case: Case, got: list[Tensor], wanted: list[Tensor]) -> dict:
    """Largest difference, share of samples that differ, verdict; NaN and different shapes never agree."""
    worst, differ, count = 0.0, 0, 0
    for a, b in zip(got, wanted, strict=True):
        if a.shape != b.shape:
            worst = float("inf")
            continue
        scale = b.double().abs().max().clamp(min=1e-30) if b.numel() else 1.0
        error = ((a.double() - b.double()).abs() / scale).nan_to_num(nan=float("inf"))
        worst = max(worst, float(error.max()) if error.numel() else 0.0)
        differ, count = differ + int((a != b).sum()), count + a.numel()
    differing = differ / max(1, count)
    agrees = worst <= case.tolerance or 0 < differing <= case.share
    return {"op": case.name, "max_error": worst, "share_differing": differing, "agrees": agrees}


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def graph_of(call: Call) -> dict:
    """Whether a call waits for the GPU, and whether a CUDA graph of it gives the same bits twice; why not."""
    found: dict = {"waits": False, "replays": False}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is made once is made before the recording
        eager = call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        found |= {"waits": True, "why": str(error).splitlines()[0][:200]}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    if found["waits"]:
        return found  # it cannot be recorded either
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            out = call()
        same = True
        for _ in range(2):  # counters are back at 0 after a replay
            for t in out:
                t.zero_()
            graph.replay()
            torch.cuda.synchronize()
            same = same and same_bits(out, eager)
        found["replays"] = same
    except RuntimeError as error:
        found["why"] = str(error).splitlines()[0][:200]
    return found


def compare(case: Case) -> dict:
    """The row of a case; ``ran``: the ops that ran natively."""
    call = case.make(DEVICE)
    with Compared() as compared:
        got = [t.cpu() for t in call()]
    with Reference() if DEVICE == "cpu" else contextlib.nullcontext():
        wanted = case.make("cpu")()
    row = judge(case, got, wanted) | {"ran": sorted(compared.names), "in_step": case.in_step}
    return row | graph_of(call) if DEVICE == "cuda" else row


def work(first: int) -> None:
    """The cases from ``first`` on, a JSON row per line as they come."""
    for case in cases(DEVICE)[first:]:
        try:
            row = compare(case)
        except RuntimeError as error:
            row = broken(case.name, str(error).splitlines()[0][:200])
            if "CUDA error" in str(error):  # which no later call of this process would survive
                print(json.dumps(row), flush=True)
                sys.exit(3)
        print(json.dumps(row), flush=True)


def broken(name: str, why: str) -> dict:
    return {"op": name, "max_error": None, "share_differing": None, "agrees": False, "ran": [], "why": why}


def forward(stream: Iterable[str], lines: queue.Queue) -> None:
    """Each line as it comes, None at the end."""
    for line in stream:
        lines.put(line)
    lines.put(None)


def rows(names: list[str]) -> Iterator[dict]:
    """The rows of all cases, from as many processes as it takes."""
    done = 0
    for _ in range(STARTS):
        if done == len(names):
            return
        with tempfile.TemporaryFile("w+") as errors:
            command = [sys.executable, __file__, "--first", str(done)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            lines: queue.Queue = queue.Queue()
            threading.Thread(target=forward, args=(process.stdout, lines), daemon=True).start()
            limit, why = FIRST_SECONDS, ""
            while True:
                try:
                    line = lines.get(timeout=limit)
                except queue.Empty:
                    why = f"no result in {limit:.0f} s"
                    process.kill()
                    break
                if line is None:
                    break
                yield json.loads(line)
                done, limit = done + 1, CASE_SECONDS
            status = process.wait()
            if done < len(names) and status != 3:  # 3: the case has its row
                errors.seek(0)
                last = (errors.read().strip().splitlines() or [""])[-1][:200]
                yield broken(names[done], why or f"exit status {status}: {last}")
                done += 1
    for name in names[done:]:
        yield broken(name, f"{STARTS} processes ended before it")


def good(row: dict) -> bool:
    """Agrees and, where that is asked for, is fit for a CUDA graph."""
    fit = DEVICE == "cpu" or not row.get("in_step") or (not row["waits"] and row["replays"])
    return row["agrees"] and fit


def text(row: dict) -> str:
    """A line of the table."""
    if row["max_error"] is None:
        return f"{row['op']:28} FAILED: {row['why']}"
    line = f"{row['op']:28} max error {row['max_error']:.2e}  differing {row['share_differing']:.3%}  "
    line += "agrees" if row["agrees"] else "DISAGREES"
    if "waits" in row:
        line += "  waits" if row["waits"] else "  replays" if row["replays"] else "  DOES NOT REPLAY"
        line += f" ({row['why']})" if "why" in row else ""
    return line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write the table as JSON here too, after every case")
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.first is not None:
        work(given.first)
        return 0
    print(
        f"{'CUDA against CPU' if DEVICE == 'cuda' else 'CPU kernels against the reference'}; backends of {DEVICE}:",
        end=" ",
    )
    print(", ".join(op for op in ops.TABLE if ops.has_kernel(op, DEVICE)) or "none")
    if not ops.has_kernel("distort", DEVICE):
        print(f"distort has no compiled kernel for {DEVICE}", file=sys.stderr)
        return 1
    found: list[dict] = []

    def write(**more) -> None:
        if given.out:
            partial = given.out.with_suffix(".part")
            partial.write_text(json.dumps({"device": DEVICE, "rows": found, **more}, indent=1) + "\n")
            os.replace(partial, given.out)

    for row in rows([case.name for case in cases(DEVICE)]):
        found.append(row)
        print(text(row), flush=True)
        write()
    ran = {name for row in found for name in row["ran"]}
    bad = [r["op"] for r in found if not good(r)]
    missed = [op for op in ops.TABLE if ops.has_kernel(op, DEVICE) and op not in ran]
    write(missed=missed)
    print(f"agreement: {len(found) - len(bad)} of {len(found)}" + (f"; not: {', '.join(bad)}" if bad else ""))
    if missed:
        print(f"not compared: {', '.join(missed)}")
    return 1 if bad or missed else 0


if __name__ == "__main__":
    sys.exit(main())
