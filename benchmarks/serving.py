"""Load on ``shamisa serve``: many requests in flight on loopback for a while, some of them hostile.

    python benchmarks/serving.py --checkpoint RUN --regressor FILE PHOTOS [--flight 200] [--seconds 60] [--rounds 2]

Starts the command in a process of its own, keeps ``--flight`` requests in flight, each on a new connection, and reports
statuses, latencies and photographs per second, the server's memory at the start (each photograph scored once) and after
each round, and the throughput of ``Scorer.stream`` on the same photographs in the same run. Hostile requests are truncated photographs, PNGs of
few bytes with 60 megapixels and with 3.6 gigapixels, real photographs of 60 megapixels, text, and nothing; each must get
a status of 4xx. Exit status 1 where one did not, or a good photograph got none.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import re
import statistics
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

from PIL import Image

from shamisa import load_scorer
from shamisa.score import gather


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has these sides."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def hostile(photo: bytes) -> list[bytes]:
    """Bodies that must be refused."""
    large = io.BytesIO()
    Image.new("RGB", (10_000, 6_000), (90, 120, 150)).save(large, "JPEG")
    return [photo[: len(photo) // 2], bomb(10_000, 6_000), bomb(60_000, 60_000), large.getvalue(), b"text " * 500, b""]


def memory(pid: int) -> float:
    """Resident MiB of a process."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


async def ask(port: int, body: bytes) -> int:
    """The status of one request; 0 where the connection broke."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.read()
        writer.close()
        return int(answer.split(b" ", 2)[1]) if answer else 0
    except OSError:
        return 0


async def load(port: int, photos: list[bytes], bad: list[bytes], given: argparse.Namespace) -> list[tuple]:
    """(hostile, status, seconds) of every request."""
    every, found, number = max(1, round(1 / given.hostile)) if given.hostile else 0, [], 0
    end = time.monotonic() + given.seconds

    async def client() -> None:
        nonlocal number
        while time.monotonic() < end:
            number += 1
            is_bad = bool(every) and number % every == 0
            body = bad[number // every % len(bad)] if is_bad else photos[number % len(photos)]
            start = time.monotonic()
            found.append((is_bad, await ask(port, body), time.monotonic() - start))

    await asyncio.gather(*(client() for _ in range(given.flight)))
    return found


def main() -> int:
    """The report, as JSON, on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--regressor", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--flight", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=2, help="of so many seconds each; what leaks grows in every one")
    parser.add_argument("--hostile", type=float, default=0.05, help="share of hostile requests")
    given = parser.parse_args()
    paths, _ = gather(given.photos)
    paths = paths[:64]
    photos = [Path(path).read_bytes() for path in paths]
    model = ["--checkpoint", given.checkpoint, "--regressor", given.regressor, "--device", given.device]
    command = [sys.executable, "-m", "shamisa", "serve", *model, "--port", "0", "--max-seconds", "300"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r":(\d+) ", server.stdout.readline())[1])
        for photo in photos:
            assert asyncio.run(ask(port, photo)) == 200
        held, found, wall = [memory(server.pid)], [], 0.0
        for _ in range(given.rounds):
            start = time.monotonic()
            found += asyncio.run(load(port, photos, hostile(photos[0]), given))
            wall += time.monotonic() - start
            held.append(memory(server.pid))
        alive = server.poll() is None
        again = asyncio.run(ask(port, photos[0]))
    finally:
        server.terminate()
        server.wait()
    scorer = load_scorer(given.checkpoint, given.regressor, device=given.device)
    start = time.monotonic()
    plain = sum(1 for _ in scorer.stream(paths * 2)) / (time.monotonic() - start)
    good = sorted(seconds for is_bad, status, seconds in found if not is_bad and status == 200)
    refused = Counter(status for is_bad, status, _ in found if is_bad)
    report = {
        "requests": len(found),
        "seconds": round(wall, 1),
        "in flight": given.flight,
        "good": dict(Counter(status for is_bad, status, _ in found if not is_bad)),
        "hostile": dict(refused),
        "p50 s": round(statistics.median(good), 3),
        "p95 s": round(good[int(0.95 * (len(good) - 1))], 3),
        "photographs per second": round(len(good) / wall, 2),
        "plain scorer, photographs per second": round(plain, 2),
        "memory at start and after each round, MiB": [round(m) for m in held],
        "alive and answering": alive and again == 200,
    }
    print(json.dumps(report, indent=2))
    fine = all(400 <= status < 500 for status in refused) and set(report["good"]) <= {200, 503}
    return 0 if fine and report["alive and answering"] else 1


if __name__ == "__main__":
    sys.exit(main())
