"""Scores on a Ray cluster: photographs are decoded in CPU tasks and encoded in actors, each with a scorer of its own.

    import shamisa.ray
    table = shamisa.ray.score("s3://bucket/photos", "runs/paper", "regressor.safetensors", num_gpus=1).to_pandas()

``shamisa score PATHS --ray [ADDRESS] --out FOLDER`` does the same from the command line: it writes parts, each at once, and
``--resume`` scores the photographs of the parts that are not there. On a CPU the scores are those of ``shamisa score``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
import os
import re
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import checks, remote
from .data.decode import TRUNCATED, PhotoError, is_truncated, read_photo
from .data.formats import count as count_of
from .data.formats import describe_ignored
from .files import printable, write_bytes, write_json
from .scorer import FITTED, load_scorer
from .scoring.crops import CROPS, SCALES, views
from .scoring.tables import COLUMNS, about, gather, round_row, row_text

if TYPE_CHECKING:
    from ray.data import Dataset

FORMATS = ("parquet", "csv", "jsonl")
PART = 1000  # photographs of a part
META = "meta.json"  # in a folder of parts
_BATCH = 16  # photographs that are passed on together: 24 MB of crops of 224 pixels
_CONNECT_SECONDS = 5.0


def _ray() -> Any:
    """Ray with Ray Data; MissingPackage where it is not installed."""
    return checks.need("ray.data", "scoring on Ray needs another package", "shamisa[ray]")


# ---- what runs on the workers ----------------------------------------------------------------------------------------
def _decode(batch: Any, crop: int, view: int | None, truncated: str) -> dict[str, np.ndarray]:
    """A table with the column path (bytes) and maybe others -> the same with crops and error ("": none)."""
    found: list[np.ndarray] = []
    errors: list[str] = []
    for path in batch["path"].to_pylist():
        try:
            photo = read_photo(os.fsdecode(path), truncated=truncated)
            found.append(views(photo, crop, view).numpy())
            errors.append("")
        except PhotoError as error:
            found.append(np.zeros((SCALES, CROPS, 3, crop, crop), np.uint8))
            errors.append(error.reason)
    others = {name: np.array(batch[name].to_pylist()) for name in batch.column_names if name != "path"}
    paths = np.array(batch["path"].to_pylist(), dtype=object)
    return {"path": paths, **others, "crops": np.stack(found), "error": np.array(errors, dtype=object)}


class _Encode:
    """An actor: crops -> rows."""

    def __init__(self, checkpoint: str | None, regressor: str | None, wanted: str, options: dict) -> None:
        self.scorer = load_scorer(checkpoint, regressor, **options)
        if self.scorer.extractor.hash != wanted:
            raise RuntimeError(
                f"checkpoint must be the same on all machines, got {checkpoint} with hash {self.scorer.extractor.hash[:16]} "
                f"here and {wanted[:16]} where the job was started"
            )

    def __call__(self, batch: dict[str, np.ndarray]) -> Any:
        import pyarrow as pa

        errors = [str(error) or None for error in batch["error"]]
        good = [i for i, error in enumerate(errors) if error is None]
        rows: dict[int, tuple[float, float]] = {}
        size = self.scorer.extractor.batch
        for part in (good[i : i + size] for i in range(0, len(good), size)):
            features = self.scorer.extractor.encode(torch.from_numpy(batch["crops"][part]))
            rows.update(zip(part, map(self.scorer.judge, features), strict=True))
        paths = [printable(os.fsdecode(path)) for path in batch["path"]]
        table = [round_row(path, *rows.get(i, (None, None)), errors[i]) for i, path in enumerate(paths)]
        types = (pa.string(), pa.float64(), pa.float64(), pa.string())
        columns = [pa.array(values, t) for values, t in zip(zip(*table, strict=True), types, strict=True)]
        kept = [name for name in batch if name not in ("path", "crops", "error")]
        return pa.table([*columns, *(pa.array(batch[name]) for name in kept)], names=[*COLUMNS, *kept])


# ---- a dataset -------------------------------------------------------------------------------------------------------
def score(
    data: Dataset | str | os.PathLike | Sequence[str | os.PathLike],
    checkpoint: str | os.PathLike | None = None,
    regressor: str | os.PathLike | None = None,
    *,
    view: int | str = FITTED,
    device: str = "auto",
    batch: int | None = None,
    truncated: str = "skip",
    runtime: str = "torch",
    actors: int | tuple[int, int] | None = None,
    num_gpus: float = 0.0,
    num_cpus: float = 1.0,
    decode_cpus: float = 1.0,
) -> Dataset:
    """Photographs -> a Ray Dataset with the columns file, score, raw, error, not yet computed.

    Args:
        data: photographs, folders, patterns and .txt lists, paths or URLs (see ``remote``) that all workers can read; or a
            Dataset with the column ``path``, whose other columns are kept.
        checkpoint, regressor, view, device, batch, truncated, runtime: see ``shamisa.load_scorer``; the files must be readable from all
            workers, which load them once for each actor.
        actors: how many hold a scorer, or (fewest, most); by default from 1 to the GPUs / ``num_gpus`` of the cluster, or to its
            CPUs / ``num_cpus``, as long as photographs wait.
        num_gpus: of an actor; fractions let several share one.
        num_cpus: of an actor. Its torch has that many threads.
        decode_cpus: of a decoding task. Where both numbers are equal and there is no GPU, Ray decodes inside the actors, which
            saves the copies in between.

    Returns:
        Rows in no certain order: ``file`` string, ``score`` float64 in 0..1, higher is better, and ``raw`` float64 on the
        scale of the regressor's training labels, both rounded to six digits as by ``shamisa score``, null where ``error``
        (string, else null) says why a photograph cannot be read. Those never fail the job.

    Raises:
        ValueError, RuntimeError: bad arguments, before any work; Ray is not installed; too small a cluster.
    """
    ray = _ray()
    options = {"view": view, "batch": batch, "truncated": truncated, "runtime": runtime}
    scorer = load_scorer(checkpoint, regressor, device="cpu" if runtime == "torch" else device, **options)
    if not isinstance(data, ray.data.Dataset):
        paths, _ = gather([os.fspath(p) for p in ([data] if isinstance(data, str | os.PathLike) else data)])
        data = _dataset(ray, paths)
    elif "path" not in (data.columns() or ()):
        raise ValueError(f"data must have the column path, got {', '.join(data.columns() or ()) or 'an empty dataset'}")
    places = [None if place is None else os.fspath(place) for place in (checkpoint, regressor)]
    given = (*places, scorer.extractor.hash, {"device": device, **options})
    seen = {"crop": scorer.extractor.crop, "view": scorer.extractor.view, "truncated": truncated}
    return _plan(ray, data, seen, given, actors, num_gpus, num_cpus, decode_cpus)


def _dataset(ray: Any, paths: Sequence[str], first: Sequence[int] | None = None) -> Dataset:
    """Paths -> a Dataset of blocks small enough that all CPUs have some; with the column part, where positions are given."""
    import pyarrow as pa

    if not paths:
        raise ValueError("data must name at least one photograph, got none")
    cpus = int(_cluster(ray).get("CPU", 1))
    size = max(_BATCH, min(PART, len(paths) // (4 * cpus)))
    columns = {"path": pa.array([os.fsencode(path) for path in paths], pa.binary())}
    if first is not None:
        columns["part"] = pa.array(first, pa.int64())
    table = pa.table(columns)
    return ray.data.from_arrow([table.slice(i, size) for i in range(0, len(paths), size)])


def _cluster(ray: Any) -> dict[str, float]:
    if not ray.is_initialized():
        start(None)
    return ray.cluster_resources()


def _plan(
    ray: Any,
    data: Dataset,
    seen: dict,
    given: tuple[str | None, str | None, str, dict],
    actors: int | tuple[int, int] | None,
    num_gpus: float,
    num_cpus: float,
    decode_cpus: float,
) -> Dataset:
    there = _cluster(ray)
    for name, value in (("num_gpus", num_gpus), ("num_cpus", num_cpus), ("decode_cpus", decode_cpus)):
        checks.number(name, value, 0, 9999, above=None if name == "num_gpus" else 0)
    for kind, need in (("GPU", num_gpus), ("CPU", num_cpus + decode_cpus)):
        if there.get(kind, 0) < need:
            raise ValueError(f"the cluster must have {need:g} {kind}s, it has {there.get(kind, 0):g}")
    most = int(there["GPU"] // num_gpus) if num_gpus else max(1, int((there["CPU"] - decode_cpus) // num_cpus))
    low, high = (1, most) if actors is None else (actors, actors) if isinstance(actors, int) else actors
    checks.integer("actors", low, 1)
    checks.integer("actors", high, low)
    decoded = data.map_batches(
        _decode,
        batch_size=_BATCH,
        batch_format="pyarrow",
        fn_kwargs=seen,
        num_cpus=decode_cpus,
    )
    return decoded.map_batches(
        _Encode,
        fn_constructor_args=given,
        batch_size=_BATCH,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(min_size=low, max_size=high),
        num_cpus=num_cpus,
        **({"num_gpus": num_gpus} if num_gpus else {}),
    )


def start(address: str | None) -> None:
    """Connect to a cluster ("auto", HOST:PORT, ray://HOST:PORT), or start one on this machine (None); RuntimeError where
    there is none."""
    ray = _ray()
    if ray.is_initialized():
        return
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "auto"
    found = re.fullmatch(r"(?:ray://)?\[?([^/\]]+)\]?:(\d+)", address or "")
    if found:  # Ray itself tries for minutes
        try:
            _greet(found[1], int(found[2]))
        except OSError as error:
            raise RuntimeError(f"no Ray cluster answers at {address}: {remote.why(error)}") from None
    elif address not in (None, "auto"):
        raise RuntimeError(f"the address of a Ray cluster must be auto or HOST:PORT, got {address!r}")
    quiet = {"log_to_driver": False, "logging_level": "error"}
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of this process, on stderr; Ray's files keep all
    try:
        if address is None:
            # two CPUs at least, or the one actor would leave nothing to decode with
            ray.init(address="local", num_cpus=max(2, os.cpu_count() or 1), include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        if address == "auto" and isinstance(error, ConnectionError):
            raise RuntimeError(
                "no Ray cluster runs on this machine, and RAY_ADDRESS names none: give HOST:PORT"
            ) from None
        # of a refused token Ray says so only in its log
        token = " (one that wants a token: set RAY_AUTH_MODE=token)" if found else ""
        reason = " ".join(str(error).split())
        raise RuntimeError(f"no Ray cluster at {address or 'this machine'}: {reason}{token}") from None


def _greet(host: str, port: int) -> None:
    """OSError where nothing listens, or what listens does not speak HTTP/2, as Ray's gRPC does."""
    with socket.create_connection((host, port), _CONNECT_SECONDS) as client:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return  # the greeting would have to be encrypted
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))  # empty settings
        answer = b""
        while len(answer) < 4 and (more := client.recv(64)):
            answer += more
        if answer[3:4] != b"\x04":  # its first frame must be its settings
            raise ConnectionError("something else listens there")


# ---- parts -----------------------------------------------------------------------------------------------------------
class Parts:
    """A folder, local or by URL, of tables: part k has the rows of photographs k * size up to (k + 1) * size of a list.

    A part is written at once, when it is complete. ``meta.json``, which ``begin`` writes, says what made them; ``resume``
    refuses another model, other photographs, sizes or formats.
    """

    def __init__(self, out: str, paths: Sequence[str], kind: str, size: int, meta: dict, resume: bool) -> None:
        checks.choice("--format", kind, FORMATS)
        self.out, self.kind, self.size, self.paths = out, kind, checks.integer("--part", size, 1), paths
        digest = hashlib.sha256(b"\0".join(os.fsencode(path) for path in paths)).hexdigest()
        self.meta = {**meta, "photographs": len(paths), "photographs_hash": digest, "format": kind, "part": size}
        self.rows: dict[int, list[tuple]] = {}  # of parts that are not complete
        self.failed: list[str] = []  # reasons, of this call
        names = self._names()
        if names and not resume:
            raise ValueError(f"--out {out} exists: continue with --resume, or choose another")
        if names:
            self._check()
        self.begun = bool(names)
        self.done = {k for k in range(-(-len(paths) // size)) if self._name(k) in names}

    def _names(self) -> set[str]:
        try:
            if remote.is_url(self.out):
                if not remote.exists(self.out):
                    remote.check_writable(remote.join(self.out, META))
                    return set()
                return set(remote.find(self.out))
            if os.path.exists(self.out) and not os.path.isdir(self.out):
                raise ValueError(f"--out must be a folder for the parts, got the file {self.out}")
            if not os.path.isdir(os.path.dirname(os.path.abspath(self.out))):
                raise ValueError(f"--out must lie in an existing folder, got {self.out}")
            names = os.listdir(self.out) if os.path.isdir(self.out) else []
            return {name for name in names if not name.startswith(".")}
        except remote.RemoteError as error:
            raise ValueError(f"--out must be a URL that can be written to, got {self.out}: {error.reason}") from None

    def begin(self) -> None:
        """Make the folder, with ``meta.json``, where it is not there."""
        if not self.begun:
            if not remote.is_url(self.out):
                os.makedirs(self.out, exist_ok=True)
            self._write(META, self.meta)

    def _check(self) -> None:
        import json

        place = remote.join(self.out, META) if remote.is_url(self.out) else os.path.join(self.out, META)
        try:
            found = json.loads(remote.read(place) if remote.is_url(place) else Path(place).read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(f"--out {self.out} must hold parts and their {META}: {remote.why(error)}") from None
        if changed := [name for name, value in self.meta.items() if found.get(name) != value]:
            raise ValueError(f"{self.out} was started with another {', '.join(changed)}: it cannot be resumed")

    def _name(self, k: int) -> str:
        return f"part-{k:06d}.{self.kind}"

    def _write(self, name: str, content: bytes | dict) -> None:
        if remote.is_url(self.out):
            import json

            data = content if isinstance(content, bytes) else (json.dumps(content, indent=2) + "\n").encode()
            remote.write(remote.join(self.out, name), data)
        elif isinstance(content, bytes):
            write_bytes(Path(self.out, name), content)
        else:
            write_json(Path(self.out, name), content)

    def todo(self) -> Iterator[tuple[int, str]]:
        """(part, path) of the photographs whose part is not there."""
        return ((i // self.size, path) for i, path in enumerate(self.paths) if i // self.size not in self.done)

    def add(self, part: int, row: tuple) -> None:
        """A row; the last one of a part writes it, in the order of the list."""
        rows = self.rows.setdefault(part, [])
        rows.append(row)
        expected = self.paths[part * self.size : (part + 1) * self.size]
        if len(rows) < len(expected):
            return
        order = {printable(path): i for i, path in enumerate(expected)}
        self._write(self._name(part), table_bytes(self.kind, sorted(rows, key=lambda r: order[r[0]])))
        self.failed += [r[3] for r in rows if r[3] is not None]
        del self.rows[part]


def table_bytes(kind: str, rows: Sequence[tuple]) -> bytes:
    """Rows (file, score, raw, error) as a file of one of ``FORMATS``."""
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet

        types = (pa.string(), pa.float64(), pa.float64(), pa.string())
        columns = [pa.array(values, t) for values, t in zip(zip(*rows, strict=True), types, strict=True)]
        file = io.BytesIO()
        pa.parquet.write_table(pa.table(columns, names=list(COLUMNS)), file)
        return file.getvalue()
    head = ",".join(COLUMNS) + "\n" if kind == "csv" else ""
    return (head + "".join(row_text(f".{kind}", row) for row in rows)).encode()


def run(
    paths: Sequence[str],
    checkpoint: str | None,
    regressor: str | None,
    *,
    out: str,
    address: str | None,
    kind: str = "parquet",
    size: int = PART,
    resume: bool = False,
    quiet: bool = False,
    **options: Any,
) -> tuple[Parts, int]:
    """What ``shamisa score --ray`` does: -> the parts, and how many photographs this call scored or found unreadable.

    options: see ``score``. Raises ValueError or RuntimeError for bad input, before work starts.
    """
    from tqdm import tqdm

    checks.choice("truncated", options.get("truncated", "skip"), TRUNCATED)
    scorer = load_scorer(
        checkpoint, regressor, view=options.get("view", FITTED), device="cpu", batch=options.get("batch")
    )
    parts = Parts(out, paths, kind, size, about(scorer), resume)
    todo = list(parts.todo())
    if not todo:
        return parts, 0
    ray = _ray()
    start(address)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data = _dataset(ray, [path for _, path in todo], [part for part, _ in todo])
    table = score(data, checkpoint, regressor, **options)
    parts.begin()
    bar = tqdm(total=len(paths), initial=len(paths) - len(todo), unit="image", disable=quiet)
    try:
        with bar:
            for block in table.iter_batches(batch_size=None, batch_format="pyarrow"):
                for row in zip(*(block[name].to_pylist() for name in (*COLUMNS, "part")), strict=True):
                    parts.add(row[-1], row[:-1])
                bar.update(len(block))
    except ray.exceptions.RayError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1]
        raise RuntimeError(f"the job on Ray failed ({reason}): continue with --resume") from error
    if parts.rows:
        raise RuntimeError(f"{len(parts.rows)} parts are not complete: continue with --resume")
    return parts, len(todo)


def command(given: argparse.Namespace) -> int:
    """``shamisa score --ray``, as ``score.run``; ``out`` is a folder of parts."""
    others: Counter[str] = Counter()
    paths, closed = gather(given.paths, others)
    if others:
        print(describe_ignored(others), file=sys.stderr)
    names = ("view", "device", "batch", "truncated", "runtime", "actors", "quiet", "resume")
    parts, fresh = run(
        paths,
        given.checkpoint,
        given.regressor,
        out=given.out or "scores",
        address=given.ray or None,
        kind=given.format,
        size=given.part,
        num_gpus=given.gpus,
        **{name: getattr(given, name) for name in names},
    )
    for error in closed:
        print(f"cannot be scored: {printable(error.path)}: {error.reason}", file=sys.stderr)
    earlier = f", {len(paths) - fresh} in parts from before" if fresh < len(paths) else ""
    count = len(parts.failed) + len(closed)
    cut_off = sum(map(is_truncated, parts.failed))
    words = [f"{parts.out}: {fresh - len(parts.failed)} of {len(paths)} photographs scored{earlier}"]
    # earlier parts are not opened to count theirs: there may be a hundred thousand of them, in object storage
    words.append(f"{count} could not be read{' this time' if earlier else ''}, see the column error")
    words += [f"{count_of(cut_off, 'truncated JPEG')} among them (--truncated read)"] if cut_off else []
    print("; ".join(words))
    return count
