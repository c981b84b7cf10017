"""Serve scores over HTTP: POST a photograph to /score, or open the page and drop one on it.

    curl --data-binary @photo.jpg http://127.0.0.1:8000/score

answers with JSON: score (0..1, higher is better), raw (on the scale of the regressor's training labels), and the scores of
the five places that they are the mean of. Uploads have limits of bytes, pixels and time. Only this machine can reach it
unless --host says otherwise; there is no encryption and no login, so put a proxy that has them in front of a public one.
"""

from __future__ import annotations

import argparse
import socket
import sys

from .checks import MissingPackage
from .cli import guard

EXTRA = "shamisa[serve]"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="shamisa serve",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        metavar="RUN",
        help="run folder, or whatever else the probe accepts as --checkpoint [the packaged model]",
    )
    parser.add_argument("--regressor", metavar="FILE", help="regressor.safetensors written by the probe")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all [%(default)s]")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free [%(default)s]")
    parser.add_argument("--max-bytes", type=int, help="largest upload [32 MiB]")
    parser.add_argument("--max-pixels", type=int, help="largest photograph [50 million]")
    parser.add_argument("--max-seconds", type=float, help="for an upload, and again for its answer [30]")
    parser.add_argument("--waiting", type=int, help="requests at once; further ones are told to try again [256]")
    parser.add_argument(
        "--batch", type=int, help="photographs per encoder call under load, ten crops each [1 on a CPU, 8 on a GPU]"
    )
    parser.add_argument("--workers", type=int, default=2, help="decoding threads [%(default)s]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N [auto]")
    return parser


def run(given: argparse.Namespace) -> int:
    """Serves until it is told to stop. Raises ValueError, RuntimeError or OSError for bad input, before it listens."""
    try:
        import uvicorn

        from .serving.service import LOOPBACK, Service
    except ImportError as error:
        raise MissingPackage(f"serve needs another package ({error}): pip install '{EXTRA}'") from None
    from .scorer import load_scorer

    if not 0 <= given.port < 1 << 16:
        raise ValueError(f"--port must lie in 0..65535, got {given.port}")
    listening = _listen(given.host, given.port)
    with listening:
        scorer = load_scorer(given.checkpoint, given.regressor, device=given.device, batch=given.batch)
        names = ("max_bytes", "max_pixels", "max_seconds", "waiting")
        options = {name: value for name in names if (value := getattr(given, name)) is not None}
        local = given.host in LOOPBACK
        service = Service(scorer, workers=given.workers, hosts=LOOPBACK if local else None, **options)
        host, port = listening.getsockname()[:2]
        print(f"serving on http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it)", flush=True)
        config = uvicorn.Config(
            service.app, log_level="warning", timeout_keep_alive=5, timeout_graceful_shutdown=10, server_header=False
        )
        uvicorn.Server(config).run(sockets=[listening])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise ValueError(f"--host {host} --port {port} cannot be listened on: {error.strerror or error}") from None


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 told to stop, 2 bad input, 130 interrupted."""
    given = make_parser().parse_args(argv)
    return guard("serve", lambda: run(given), "it no longer serves")


if __name__ == "__main__":
    sys.exit(main())
