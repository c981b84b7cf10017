"""Other register and memory budgets of the distortion kernel side by side: ``python3 benchmarks/variants.py SITE VARIANTS``.

SITE is a folder with the unpacked wheel, VARIANTS that of gpu_pack.sh: a folder per variant with its ``_C_cuda.abi3.so.gz``.
The library of the wheel is the row "wheel". Every row runs in a process of its own: ``--out FILE`` is written after each.
Without a GPU the x86-64 levels of the CPU kernels stand in for variants.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

COLUMNS = {  # of the table -> its head
    "registers": "registers",
    "engine_224": "engine, 224 px, images/s",
    "engine_512": "512 px, images/s",
    "pointwise_gb_s": "pointwise chain, GB/s",
    "jpeg2000": "jpeg2000, images/s",
}


def measure_here(small: bool) -> dict:
    """The figures of the library that this process has loaded."""
    import measure
    import torch

    from shamisa import DISTORTIONS, DistortionEngine, ops
    from shamisa.measuring.workloads import SIZE, distortion_call, engine_call, make_crops

    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine, found = DistortionEngine(), {}
    views, per_plan = (6, 120) if not small else (2, 40)
    crops = make_crops(views).to(device)
    options = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
    for size, B, key in ((SIZE, 16, "engine_224"), (512, 4, "engine_512")):
        B = 1 if small else B
        big = torch.nn.functional.interpolate(crops.float(), (size, size), mode="bicubic").clamp(0, 255).to(torch.uint8)
        references = (crops if size == SIZE else big).expand(B, *crops.shape[:2], size, size).contiguous()
        plans = [engine.sample(B, seed=1, step=s).to(device) for s in range(1 if small else 4)]
        seconds = measure.seconds_of(engine_call(references, plans, options), device, rounds=1 if small else 5)
        found[key] = len(plans) * B * per_plan / seconds
    n = 4 if small else 1024
    images = make_crops(4).to(device).float().div(255).repeat(n // 4, 1, 1, 1)
    names = ("darken", "color_saturation_hsv", "linear_contrast_up", "mean_shift_up", "nonlinear_contrast")
    rows = [DISTORTIONS[name] for name in names]
    opcode = torch.tensor([r.opcode for r in rows], device=device).expand(n, len(rows))
    value = torch.tensor([r.levels[2] for r in rows], device=device).expand(n, len(rows))
    key, index = torch.arange(n * len(rows), device=device).view(n, -1), torch.arange(n, device=device)
    rounds = 2 if small else 7
    seconds = measure.seconds_of(lambda: ops.run_distort(images, index, opcode, value, key), device, rounds=rounds)
    found["pointwise_gb_s"] = 2 * measure.size_of(images) / seconds / 1e9
    codec = images[: max(4, n // 4)]
    seconds = measure.seconds_of(distortion_call(codec, "jpeg2000"), device, rounds=1 if small else 3)
    return found | {"jpeg2000": len(codec) / seconds}


def registers_of(folder: Path) -> int | None:
    """Those of the distortion kernel, as the compiler reported them."""
    found = folder / "registers.txt"
    match = re.search(r"distort_images.*?Used (\d+) registers", found.read_text(), re.S) if found.exists() else None
    return int(match[1]) if match else None


def run(name: str, environment: dict[str, str], small: bool, seconds: float) -> dict:
    """A row, from a process of its own."""
    command = [sys.executable, __file__, "--here", *(["--small"] if small else [])]
    try:
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"variant": name, "failed": f"no result in {seconds:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"variant": name, "failed": f"exit status {done.returncode}: {last[:200]}"}
    return {"variant": name, **json.loads(done.stdout.splitlines()[-1])}


def line(row: dict) -> str:
    if "failed" in row:
        return f"{row['variant']:12} FAILED: {row['failed']}"
    cells = [f"{row[k]:>{len(head)},.0f}" if row.get(k) is not None else " " * len(head) for k, head in COLUMNS.items()]
    return f"{row['variant']:12} " + "  ".join(cells)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("site", type=Path, nargs="?", help="folder with the unpacked wheel")
    parser.add_argument("variants", type=Path, nargs="?", help="folder of gpu_pack.sh")
    parser.add_argument("--small", action="store_true", help="a few images, once: for a rehearsal")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a variant at most [30]")
    parser.add_argument("--out", type=Path, help="write the table as JSON here too, after every row")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure_here(given.small)))
        return 0
    rows: list[dict] = []

    def add(row: dict) -> None:
        rows.append(row)
        print(line(row), flush=True)
        if given.out:
            given.out.write_text(json.dumps(rows, indent=1) + "\n")

    print(f"{'variant':12} " + "  ".join(COLUMNS.values()))
    if given.site is None:
        for level in ("v2", "v3", "v4", ""):  # "": chosen by the machine, as in the wheel
            add(run(level or "wheel", {"SHAMISA_ISA": level}, given.small, given.seconds))
        return 1 if all("failed" in r for r in rows) else 0
    if given.variants is None or not given.variants.is_dir():
        print(f"variants must be a folder of gpu_pack.sh, got {given.variants}", file=sys.stderr)
        return 2
    add(run("wheel", {}, given.small, given.seconds) | {"registers": registers_of(given.variants.parent)})
    for folder in sorted(given.variants.iterdir()):
        with tempfile.TemporaryDirectory() as temporary:
            site = Path(temporary) / "site"
            shutil.copytree(given.site, site)
            library = gzip.decompress((folder / "_C_cuda.abi3.so.gz").read_bytes())
            (site / "shamisa" / "_C_cuda.abi3.so").write_bytes(library)
            path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
            row = run(folder.name, {"PYTHONPATH": path}, given.small, given.seconds)
        add(row | {"registers": registers_of(folder)})
    whole = [r for r in rows if "failed" not in r]
    if whole:
        best = max(whole, key=lambda r: r["engine_224"])
        wheel = rows[0].get("engine_224")
        print(
            f"fastest engine: {best['variant']}"
            + (f", {best['engine_224'] / wheel:.3f} of the wheel's" if wheel else "")
        )
    return 1 if len(whole) < len(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
