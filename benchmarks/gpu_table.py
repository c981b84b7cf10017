"""What gpu_check.sh found, on one screen: ``python3 benchmarks/gpu_table.py OUT``. Needs nothing but Python."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path

WIDTH = 110


def read(path: Path, otherwise):
    """JSON of a file; ``otherwise`` where there is none, or only a part."""
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return otherwise


def agreement(out: Path) -> Iterator[str]:
    found = read(out / "agreement.json", {})
    rows = found.get("rows", [])
    if not rows:
        return
    agree, replay = sum(r["agrees"] for r in rows), [r["replays"] for r in rows if "replays" in r]
    yield f"{agree} of {len(rows)} agree" + (f", {sum(replay)} of {len(replay)} replay as a graph" if replay else "")
    if bad := [r["op"] for r in rows if not r["agrees"]]:
        yield "not: " + ", ".join(bad)
    if bad := [r["op"] for r in rows if r.get("in_step") and r.get("replays") is False]:
        yield "do not replay: " + ", ".join(bad)


def ceilings(out: Path) -> Iterator[str]:
    for device, rates in read(out / "ceilings.json", {}).items():
        if isinstance(rates, dict):
            matrix = ", ".join(
                f"{k.split('_')[1]} {v / 1e3:,.3g} TFLOP/s" for k, v in rates.items() if k.startswith("matmul")
            )
            yield f"{device}: copy {rates['copy_gb_s']:,.4g} GB/s, {matrix}"


def rows_of(out: Path, section: str) -> list[dict]:
    """The measured rows of a section, those of a GPU only where it has any."""
    found = read(out / "benchmarks.json", {}).get("benchmarks", [])
    rows = [r for r in found if r["info"]["section"] == section]
    return [r for r in rows if r["info"]["device"] == "cuda"] or rows


def speed(out: Path) -> Iterator[str]:
    for row in rows_of(out, "engine"):
        i = row["info"]
        yield f"{i['subject']}, {i['row']}: {i['images_per_s']:,.0f} images/s (aim: 250,000 on an H200)"
    for row in rows_of(out, "chains"):
        i = row["info"]
        aim = " (aim: 60 %)" if i["subject"].startswith("pointwise") else ""
        yield f"{i['subject']}: {i['images_per_s']:,.0f} images/s, {i['share_of_copy']:.1%} of copying{aim}"
    for row in rows_of(out, "loss"):
        i = row["info"]
        aim = " (aim: 1 ms)" if i["subject"] == "N = 2016" else ""
        yield f"loss {i['subject']}, {i['row']}: {1e3 * row['stats']['median']:.3g} ms{aim}"
    each = sorted(rows_of(out, "distortions"), key=lambda r: r["info"].get("images_per_s", 0))
    slow = [f"{r['info']['subject']} {r['info']['images_per_s']:,.0f}" for r in each if "images_per_s" in r["info"]][:4]
    if slow:
        yield "slowest distortions, images/s: " + ", ".join(slow)


def steps(out: Path) -> Iterator[str]:
    for row in rows_of(out, "step"):
        i = row["info"]
        share = f", {i['share_of_encoder']:.1%} of the encoder's (aim: 97 %)" if "share_of_encoder" in i else ""
        yield f"{i['subject']}, {i['row']}: {i['images_per_s']:,.0f} images/s{share}"


def scorer(out: Path) -> Iterator[str]:
    parts = [f"{r['info']['row']} {r['info']['images_per_s']:,.3g}" for r in rows_of(out, "scorer")]
    if parts:
        yield "images/s: " + ", ".join(parts)


def variants(out: Path) -> Iterator[str]:
    rows = read(out / "variants.json", [])
    whole = [r for r in rows if "failed" not in r]
    if whole:
        best = max(whole, key=lambda r: r["engine_224"])
        yield "engine images/s: " + ", ".join(f"{r['variant']} {r['engine_224']:,.0f}" for r in whole)
        yield f"fastest: {best['variant']}"


def train(out: Path) -> Iterator[str]:
    try:
        lines = gzip.open(out / "train.jsonl.gz", "rt").read().splitlines()
    except OSError:
        return
    steps = [r for r in map(json.loads, lines) if "timing" in r]
    if steps:
        last, rates = steps[-1], sorted(r["timing"]["images_per_s"] for r in steps)
        yield f"step {last['step']}, total {last['loss']['total']:.4g}, median {rates[len(rates) // 2]:,.0f} images/s"


STAGES = {
    "agreement": agreement,
    "ceilings": ceilings,
    "speed": speed,
    "steps": steps,
    "scorer": scorer,
    "variants": variants,
    "train": train,
}


def table(out: Path) -> list[str]:
    """The verdict of each stage with its seconds, and beside it what it found."""
    lines = []
    for line in (out / "stages.txt").read_text().splitlines():
        said = list(STAGES.get(line.split()[0], lambda out: ())(out)) or [""]
        lines += [f"{line if i == 0 else '':36}{text}".rstrip()[:WIDTH] for i, text in enumerate(said)]
    return lines


if __name__ == "__main__":
    print("\n".join(table(Path(sys.argv[1]))))
