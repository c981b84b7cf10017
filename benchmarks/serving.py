"""Load on ``shamisa serve``: many requests in flight on loopback for a while, some of them hostile.

    python -m benchmarks.serving PHOTOS [--checkpoint RUN --regressor FILE] [--flight 200] [--seconds 60] [--rounds 2]

Starts the command in a process of its own, keeps ``--flight`` requests in flight, each on a new connection, and reports
statuses, latencies and photographs per second, the server's memory at the start (each photograph scored once) and after
each round, and the throughput of ``Scorer.stream`` on the same photographs in the same run. CPU seconds are those of the
server and of the plain scorer: they can be compared on a machine that does other things too. Hostile requests are
truncated photographs, PNGs of few bytes with 60 megapixels and with 3.6 gigapixels, real photographs of 60 megapixels,
text, and nothing; each must get a status of 4xx.

Under more load than it can do, the server answers 503 with Retry-After, to good and hostile requests alike, for it has not
looked at them. Those are counted, with the reasons given. Afterwards every hostile body is sent once more, alone, when 503 is
no answer; one upload is too large and one too slow. Exit status 1 where one got another status, a 503 came without
Retry-After, or a connection broke.
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

BROKEN, UNTOLD = "the connection broke", "without Retry-After"


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has these sides."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def hostile(photo: bytes) -> dict[str, bytes]:
    """Bodies that must be refused, by name."""
    large = io.BytesIO()
    Image.new("RGB", (10_000, 6_000), (90, 120, 150)).save(large, "JPEG")
    return {
        "half a photograph": photo[: len(photo) // 2],
        "60 megapixels in few bytes": bomb(10_000, 6_000),
        "3.6 gigapixels in few bytes": bomb(60_000, 60_000),
        "60 megapixels": large.getvalue(),
        "text": b"text " * 500,
        "nothing": b"",
    }


async def ask(port: int, body: bytes, seconds: float = 300) -> tuple[int, str]:
    """The status of one request and, unless it is 200, the reason; 0 where the connection broke or nothing came."""
    try:
        return await asyncio.wait_for(_ask(port, body), seconds)
    except asyncio.TimeoutError:  # noqa: UP041  another class before Python 3.11
        return 0, f"no answer within {seconds:g} s"


async def _ask(port: int, body: bytes) -> tuple[int, str]:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.read()
        writer.close()
        if not answer:
            return 0, BROKEN
        head, _, content = answer.decode().partition("\r\n\r\n")
        status = int(head.split(" ", 2)[1])
        reason = "" if status == 200 else json.loads(content)["error"]
        return status, reason if status != 503 or "retry-after:" in head.lower() else f"{reason} ({UNTOLD})"
    except OSError:
        return 0, BROKEN


async def load(port: int, photos: list[bytes], bad: dict[str, bytes], given: argparse.Namespace) -> list[tuple]:
    """(name of the hostile body, status, reason, seconds) of every request; the name of a good one is ""."""
    names = list(bad)
    every, found, number = max(1, round(1 / given.hostile)) if given.hostile else 0, [], 0
    end = time.monotonic() + given.seconds

    async def client() -> None:
        nonlocal number
        while time.monotonic() < end:
            number += 1
            is_bad = bool(every) and number % every == 0
            name = names[number // every % len(names)] if is_bad else ""
            body = bad[name] if is_bad else photos[number % len(photos)]
            start = time.monotonic()
            found.append((name, *await ask(port, body, 2 * given.max_seconds + 30), time.monotonic() - start))

    await asyncio.gather(*(client() for _ in range(given.flight)))
    return found


def refusals(port: int, seconds: float) -> dict[str, int]:
    """Statuses of an upload that says it is too large, of one that is too large without saying so, and of a slow one."""

    def status(head: str, pieces: list[bytes]) -> int:
        with socket.create_connection(("127.0.0.1", port), timeout=2 * seconds + 30) as client:
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
    parser.add_argument("--max-seconds", type=float, default=60, help="of the server: later answers are 503")
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    given = parser.parse_args()
    paths, _ = gather(given.photos)
    paths = paths[:64]
    photos = [Path(path).read_bytes() for path in paths]
    chosen = {"--checkpoint": given.checkpoint, "--regressor": given.regressor}
    model = [word for pair in chosen.items() if pair[1] for word in pair]
    command = [sys.executable, "-m", "shamisa", "serve", *model, "--device", given.device]
    limits = ["--port", "0", "--max-seconds", str(given.max_seconds)]
    server = subprocess.Popen([*command, *limits], stdout=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r":(\d+) ", server.stdout.readline())[1])
        for photo in photos:
            assert asyncio.run(ask(port, photo)) == (200, "")
        bad = hostile(photos[0])
        held, found, wall, cpu = [memory(server.pid)], [], 0.0, cpu_seconds(server.pid)
        for _ in range(given.rounds):
            start = time.monotonic()
            found += asyncio.run(load(port, photos, bad, given))
            wall += time.monotonic() - start
            held.append(memory(server.pid))
        cpu = cpu_seconds(server.pid) - cpu
        alone = {name: asyncio.run(ask(port, body))[0] for name, body in bad.items()}
        too = refusals(port, given.max_seconds)
        again, _ = asyncio.run(ask(port, photos[0]))
        alive = server.poll() is None
    finally:
        server.terminate()
        server.wait()
    good = sorted(seconds for name, status, _, seconds in found if not name and status == 200)
    reasons = Counter(f"{status}: {reason}" for name, status, reason, _ in found if not name and status != 200)
    statuses = {name: dict(Counter(found_status for n, found_status, *_ in found if n == name)) for name in ("", *bad)}
    report = {
        "machine": machine(),
        "model": given.checkpoint or "packaged",
        "photographs": len(paths),
        "mean KB": round(sum(map(len, photos)) / len(photos) / 1e3),
        "load": round(os.getloadavg()[0], 2),
        "requests": len(found),
        "seconds": round(wall, 1),
        "in flight": given.flight,
        "good": statuses.pop(""),
        "good refused": {"requests": reasons.total(), "reasons": dict(reasons)},
        "hostile": statuses,
        "hostile, alone": alone,
        "p50 s": round(statistics.median(good), 3) if good else None,
        "p95 s": round(good[int(0.95 * (len(good) - 1))], 3) if good else None,
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
    fine = {
        "good photographs got 200 or 503": set(report["good"]) <= {200, 503},
        "hostile bodies got 4xx or 503": all(400 <= s < 500 or s == 503 for found in statuses.values() for s in found),
        "hostile bodies alone got 4xx": all(400 <= status < 500 for status in alone.values()),
        "each 503 had Retry-After": not any(UNTOLD in reason for _, _, reason, _ in found),
        "large and slow uploads got 413 and 408": list(too.values()) == [413, 413, 408],
        "alive and answering": report["alive and answering"],
    }
    for name in (name for name, passed in fine.items() if not passed):
        print(f"not so: {name}", file=sys.stderr)
    return 0 if all(fine.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
