"""Load on ``shamisa serve``: many requests in flight on loopback for a while, some of them hostile.

    python -m benchmarks.serving PHOTOS [--checkpoint RUN --regressor FILE] [--flight 200] [--seconds 60] [--rounds 2]

Starts the command in a process of its own, keeps ``--flight`` requests in flight, each on a new connection, and reports
statuses, latencies and photographs per second, the server's memory at the start (each photograph scored once) and after
each round, and the throughput of ``Scorer.stream`` on the same photographs in the same run. CPU seconds are those of the
server and of the plain scorer: they can be compared on a machine that does other things too. Hostile requests are
truncated photographs, PNGs of few bytes with 60 megapixels and with 3.6 gigapixels, real photographs of 60 megapixels,
text, and nothing; each must get a status of 4xx. Afterwards one upload is too large and one too slow. Exit status 1 where
one got another status, or a good photograph got none.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import socket
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
from shamisa.files import write_json
from shamisa.measuring.machine import machine
from shamisa.score import gather

from .watched import cpu_seconds, memory

MAX_SECONDS = 60


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


def refusals(port: int) -> dict[str, int]:
    """Statuses of an upload that says it is too large, of one that is too large without saying so, and of a slow one."""

    def status(head: str, pieces: list[bytes]) -> int:
        with socket.create_connection(("127.0.0.1", port), timeout=2 * MAX_SECONDS) as client:
            client.sendall(f"POST /score HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode())
            for piece in pieces:
                client.sendall(piece)
            return int(client.recv(1000).split(b" ", 2)[1])

    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    return {
        "announced 33 MiB": status(f"Content-Length: {33 << 20}", [b"x" * 1000]),
        "33 MiB in chunks": status("Transfer-Encoding: chunked", [chunk] * 33),
        "slow": status("Content-Length: 1000", [b"abc"]),
    }


def plain(given: argparse.Namespace, paths: list[str]) -> dict:
    """What ``Scorer.stream`` takes for the same photographs."""
    scorer = load_scorer(given.checkpoint, given.regressor, device=given.device)
    list(scorer.stream(paths[:2]))
    start, cpu = time.monotonic(), time.process_time()
    count = sum(1 for _ in scorer.stream(paths * 2))
    wall, cpu = time.monotonic() - start, time.process_time() - cpu
    return {"per second": round(count / wall, 2), "per CPU second": round(count / cpu, 2)}


def main() -> int:
    """The report, as JSON, on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--checkpoint", help="[the packaged model]")
    parser.add_argument("--regressor")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--flight", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=2, help="of so many seconds each; what leaks grows in every one")
    parser.add_argument("--hostile", type=float, default=0.05, help="share of hostile requests")
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    given = parser.parse_args()
    paths, _ = gather(given.photos)
    paths = paths[:64]
    photos = [Path(path).read_bytes() for path in paths]
    chosen = {"--checkpoint": given.checkpoint, "--regressor": given.regressor}
    model = [word for pair in chosen.items() if pair[1] for word in pair]
    command = [sys.executable, "-m", "shamisa", "serve", *model, "--device", given.device]
    limits = ["--port", "0", "--max-seconds", str(MAX_SECONDS)]
    server = subprocess.Popen([*command, *limits], stdout=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r":(\d+) ", server.stdout.readline())[1])
        for photo in photos:
            assert asyncio.run(ask(port, photo)) == 200
        held, found, wall, cpu = [memory(server.pid)], [], 0.0, cpu_seconds(server.pid)
        for _ in range(given.rounds):
            start = time.monotonic()
            found += asyncio.run(load(port, photos, hostile(photos[0]), given))
            wall += time.monotonic() - start
            held.append(memory(server.pid))
        cpu = cpu_seconds(server.pid) - cpu
        too = refusals(port)
        again = asyncio.run(ask(port, photos[0]))
        alive = server.poll() is None
    finally:
        server.terminate()
        server.wait()
    good = sorted(seconds for is_bad, status, seconds in found if not is_bad and status == 200)
    refused = Counter(status for is_bad, status, _ in found if is_bad)
    report = {
        "machine": machine(),
        "model": given.checkpoint or "packaged",
        "photographs": len(paths),
        "mean KB": round(sum(map(len, photos)) / len(photos) / 1e3),
        "load": round(os.getloadavg()[0], 2),
        "requests": len(found),
        "seconds": round(wall, 1),
        "in flight": given.flight,
        "good": dict(Counter(status for is_bad, status, _ in found if not is_bad)),
        "hostile": dict(refused),
        "p50 s": round(statistics.median(good), 3),
        "p95 s": round(good[int(0.95 * (len(good) - 1))], 3),
        "served": {"per second": round(len(good) / wall, 2), "per CPU second": round(len(good) / cpu, 2)},
        "plain scorer": plain(given, paths),
        "resident MiB at start and after each round": [round(m["rss"]) for m in held],
        "private MiB at start and after each round": [round(m["private"]) for m in held],
        "large and slow uploads": too,
        "alive and answering": alive and again == 200,
    }
    print(json.dumps(report, indent=2))
    if given.out:
        write_json(given.out, report)
    fine = all(400 <= status < 500 for status in refused) and set(report["good"]) <= {200, 503}
    return 0 if fine and report["alive and answering"] and list(too.values()) == [413, 413, 408] else 1


if __name__ == "__main__":
    sys.exit(main())
