"""Scores on Ray held against the plain command, on many small photographs: rows, kills, CPU seconds, memory.

    python -m benchmarks.scale FOLDER [--count 20000] [--only make,rows,s3,kills] [--out result.json]

make    distorts the packaged photographs with the engine into FOLDER/photos (96 to 160 pixels, JPEG and PNG), one in twenty
        broken, and fits a regressor to shamisa/small with its first weights: an encoder that costs little, so that
        what Ray costs shows
rows    scores the folder by the plain command and on Ray in turn: rows compared bit for bit, photographs for each CPU
        second of all processes, memory of each
s3      the same files in s3:// (moto's server on loopback): rows on Ray against those of the plain command on disk
kills   on Ray, with a worker killed (SIGKILL) and the driver killed at three random moments, resumed each time: rows compared,
        parts that were there before untouched

Needs the extras [ray] and, for s3, [remote] and moto[server]. Linux. Exit status 1 where rows differ.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from shamisa import DISTORTIONS, distort
from shamisa.data.embedded import EmbeddedPhotos
from shamisa.files import write_json
from shamisa.measuring.machine import machine
from shamisa.scoring.tables import COLUMNS, read_rows

from .serving import bomb
from .watched import Watched

SIDES = (96, 112, 128, 144, 160)
ENCODER, CROP = "untrained:shamisa/small", 48
FITTED = 400  # photographs that the regressor is fitted to
STEPS = ("make", "rows", "s3", "kills")


# ---- files -----------------------------------------------------------------------------------------------------------
def broken(kind: int, data: bytes) -> bytes:
    """One of six ways in which a file is no photograph."""
    noise = np.random.default_rng(len(data)).bytes(500)
    return (b"", b"text " * 100, data[: len(data) // 2], noise, bomb(60_000, 60_000), data[:20])[kind]


def make(folder: Path, count: int, share: float) -> dict:
    """Photographs, labels (4 - severity) of the sound ones among the first, and a regressor."""
    photos, names, rng = folder / "photos", list(DISTORTIONS), random.Random(0)
    sources = [source for split in ("train", "test") for source in _packaged(split)]
    every, labels, lost = round(1 / share) if share else count + 1, [], 0
    for i in range(count):
        place = photos / f"{i // 1000:03d}" / f"{i:06d}.{'png' if i % 3 == 0 else 'jpg'}"
        place.parent.mkdir(parents=True, exist_ok=True)
        photo, side, severity = rng.choice(sources), rng.choice(SIDES), rng.uniform(0, 4)
        top, left = (rng.randrange(n - side + 1) for n in photo.shape[1:])
        crop = photo[:, top : top + side, left : left + side].contiguous()
        worse = distort(crop, names[i % len(names)], severity=severity, seed=i)
        file = io.BytesIO()
        picture = Image.fromarray(worse.permute(1, 2, 0).numpy())
        picture.save(file, "PNG", compress_level=1) if i % 3 == 0 else picture.save(file, "JPEG", quality=95)
        data = file.getvalue()
        if i % every == every - 1:
            data, lost = broken(lost % 6, data), lost + 1
        elif len(labels) < FITTED:
            labels.append((f"{place.relative_to(photos)}", f"{4 - severity:.4f}"))
        place.write_bytes(data)
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "score"), *labels])
    words = [
        "--checkpoint",
        ENCODER,
        "--labels",
        folder / "labels.csv",
        "--root",
        photos,
        "--crop",
        CROP,
        "--splits",
        1,
    ]
    subprocess.run(
        [sys.executable, "-m", "shamisa.probe", *map(str, words), "--out", str(folder / "probe")], check=True
    )
    size = sum(path.stat().st_size for path in photos.rglob("*.*"))
    return {"photographs": count, "broken": lost, "MB": round(size / 1e6, 1), "sides": SIDES, "encoder": ENCODER}


def _packaged(split: str) -> Iterator[torch.Tensor]:
    """The packaged photographs of a split, without dead leaves: uint8 [3, H, W]."""
    source = EmbeddedPhotos(split, leaves=0)
    return (source[i] for i in range(len(source)))


@contextmanager
def object_store(folder: Path) -> Iterator[str]:
    """moto's server on loopback with the photographs in it: the URL of their folder; the environment leads there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    os.environ |= {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "something"}
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(address, timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        import s3fs

        system = s3fs.S3FileSystem()
        system.mkdir("scale")
        system.put(str(folder / "photos") + "/", "scale/photos/", recursive=True)
        yield "s3://scale/photos"
    finally:
        server.terminate()
        server.wait()


# ---- commands --------------------------------------------------------------------------------------------------------
def score(folder: Path, photos: str, *words: str | int) -> Watched:
    """``shamisa score`` of these, begun."""
    model = [
        "--checkpoint",
        ENCODER,
        "--regressor",
        folder / "probe/regressor.safetensors",
        "--device",
        "cpu",
        "--quiet",
    ]
    command = [sys.executable, "-m", "shamisa.score", photos, *model, *words]
    with open(folder / "log.txt", "a") as log:
        return Watched([str(word) for word in command], stdout=log, stderr=log)


def fresh(place: Path) -> Path:
    """A name for output that is not there yet."""
    number = 0
    while (found := place.with_name(f"{place.stem}-{number}{place.suffix}")).exists():
        number += 1
    return found


def rows_of(out: Path) -> list[tuple]:
    """Rows of a table, or of a folder of parts."""
    if out.is_file():
        return read_rows(out)
    import pyarrow.parquet

    parts = [pyarrow.parquet.read_table(path) for path in sorted(out.glob("part-*"))]
    return [tuple(row[c] for c in COLUMNS) for part in parts for row in part.to_pylist()]


def figures(done: Watched, out: Path, status: int) -> dict:
    """What one command took."""
    wall = time.monotonic() - done.begun
    count = len(rows_of(out))
    most = sorted(done.peak.items(), key=lambda item: -item[1]["pss"])[:8]
    return {
        "status": status,
        "rows": count,
        "CPU seconds": round(done.cpu_seconds, 1),
        "wall seconds": round(wall, 1),
        "photographs per CPU second": round(count / done.cpu_seconds, 2),
        "load": round(os.getloadavg()[0], 2),
        "peak MiB of one process": {name: {k: round(v) for k, v in held.items()} for name, held in most},
    }


def compare(got: list[tuple], wanted: list[tuple], prefix: tuple[str, str] = ("", "")) -> dict:
    """Rows against those of the plain command, in any order; a prefix of file names is replaced first."""
    renamed = sorted((prefix[1] + row[0].removeprefix(prefix[0]), *row[1:]) for row in got)
    errors = [row for row in renamed if row[3] is not None]
    return {
        "rows": len(got),
        "names that come twice": len(got) - len({row[0] for row in got}),
        "with an error": len(errors),
        "equal to the plain command, every bit": renamed == sorted(wanted),
    }


# ---- steps -----------------------------------------------------------------------------------------------------------
def alternate(folder: Path, rounds: int, part: int) -> dict:
    """Plain and Ray, in turn."""
    photos, found = str(folder / "photos"), {"plain": [], "ray": []}
    for _ in range(rounds):
        plain = fresh(folder / "plain.csv")
        done = score(folder, photos, "--out", plain)
        found["plain"].append(figures(done, plain, done.wait()))
        out = fresh(folder / "parts")
        done = score(folder, photos, "--ray", "--out", out, "--part", part)
        found["ray"].append(figures(done, out, done.wait()))
        found["same"] = compare(rows_of(out), rows_of(plain))
    return found


def by_url(folder: Path, part: int) -> dict:
    """On Ray from s3://, against the plain command on disk."""
    out = fresh(folder / "parts")
    with object_store(folder) as url:
        done = score(folder, url, "--ray", "--out", out, "--part", part)
        found = figures(done, out, done.wait())
    prefix = ("s3://scale/photos", str(folder / "photos"))
    return {**found, "same": compare(rows_of(out), rows_of(plain_of(folder)), prefix)}


def plain_of(folder: Path) -> Path:
    """The newest table of the plain command."""
    tables = sorted(folder.glob("plain-*.csv"), key=lambda path: path.stat().st_mtime)
    if not tables:
        sys.exit("the step rows comes first: it makes the table that others are compared with")
    return tables[-1]


def kills(folder: Path, part: int, seed: int) -> dict:
    """A worker killed, then the driver three times, at random moments; resumed each time."""
    rng, photos, out = random.Random(seed), str(folder / "photos"), fresh(folder / "parts")
    total = -(-len(rows_of(plain_of(folder))) // part)
    words = ["--ray", "--out", out, "--part", part]
    done = score(folder, photos, *words)
    _until(done, out, rng.randrange(1, max(2, total // 8)))
    workers = done.alive("ray::MapWorker") + done.alive("ray::MapBatches")
    for pid in workers[:1]:
        os.kill(pid, signal.SIGKILL)
    events = [{"killed": "worker", "parts there": _count(out)}] if workers else []
    kept: dict[str, tuple] = {}
    for _ in range(3):
        _until(done, out, min(total - 1, _count(out) + rng.randrange(1, max(2, total // 4))))
        time.sleep(rng.uniform(0, 3))
        done.kill()
        time.sleep(1)
        now = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("part-*")}
        untouched = all(now.get(name) == content for name, content in kept.items())
        events.append({"killed": "driver", "parts there": len(now), "earlier parts untouched": untouched})
        kept = now
        done = score(folder, photos, *words, "--resume")
    status = done.wait()
    untouched = all(
        (path := out / name).stat().st_mtime_ns == moment and path.read_bytes() == content
        for name, (moment, content) in kept.items()
    )
    last = (folder / "log.txt").read_text().strip().splitlines()[-1]
    return {
        "parts": total,
        "events": events,
        "status": status,
        "earlier parts untouched at the end": untouched,
        "same": compare(rows_of(out), rows_of(plain_of(folder))),
        "last line": last.removeprefix(str(folder)),
    }


def _count(out: Path) -> int:
    return len(list(out.glob("part-*")))


def _until(done: Watched, out: Path, parts: int) -> None:
    while _count(out) < parts and done.process.poll() is None:
        time.sleep(0.05)


def main() -> int:
    """Runs the steps; writes what each found at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--broken", type=float, default=0.05, help="share of the files")
    parser.add_argument("--rounds", type=int, default=1, help="of the step rows")
    parser.add_argument("--part", type=int, default=250, help="photographs of a part on Ray")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--only", default=",".join(STEPS))
    parser.add_argument("--out", type=Path, help="[FOLDER/scale.json]")
    given = parser.parse_args()
    folder = given.folder.resolve()
    if unknown := set(given.only.split(",")) - set(STEPS):
        parser.error(f"--only must be some of {','.join(STEPS)}, got {','.join(sorted(unknown))}")
    place = given.out or folder / "scale.json"
    found = json.loads(place.read_text()) if place.exists() else {}
    steps = {
        "make": lambda: make(folder, given.count, given.broken),
        "rows": lambda: alternate(folder, given.rounds, given.part),
        "s3": lambda: by_url(folder, given.part),
        "kills": lambda: kills(folder, given.part, given.seed),
    }
    for name in STEPS:
        if name in given.only.split(","):
            found[name] = steps[name]()
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, {"machine": machine(), **{k: found[k] for k in STEPS if k in found}})
            print(name, json.dumps(found[name], indent=2), flush=True)
    same = [found[name]["same"]["equal to the plain command, every bit"] for name in STEPS[1:] if name in found]
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
