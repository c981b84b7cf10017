"""Look at every photograph of a source: can it be read, what is it, is it there twice, are its shards as they were."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .. import remote
from ..files import folder_of, hash_file, in_folder, is_file, read_file, size_of
from .decode import PhotoError, decode_photo, is_truncated, open_photo, photo_errors, within
from .formats import describe_ignored
from .photos import EncodedPhotos
from .readers import prepare_worker
from .shards import PhotoShards

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Record:
    """What is known of one photograph; ``fault`` says why it cannot be used. Sides are those stored, before any turn."""

    name: str
    size: int = 0  # bytes
    sha256: str = ""
    format: str = ""  # as Pillow calls it
    mode: str = ""
    width: int = 0
    height: int = 0
    fault: str | None = None
    remark: str | None = None  # what should be known of one that is read: cut off, HDR


def inspect(source: EncodedPhotos, i: int) -> Record:
    """Read and decode photograph i within the limits of its source."""
    name, label, limits = source.name(i), source._label(i), source.limits
    found: dict = {}

    def look() -> None:
        data = source._read(i)
        found.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        with photo_errors(label), open_photo(data, label, limits) as image:
            found.update(format=image.format, mode=image.mode, width=image.width, height=image.height)
        decode_photo(data, label, limits, note=lambda remark: found.update(remark=remark))

    try:
        within(limits.max_seconds, label, look)
    except PhotoError as error:
        return Record(name, **{**found, "fault": error.reason})
    return Record(name, **found)


class _Inspection(Dataset):
    def __init__(self, source: EncodedPhotos) -> None:
        self.source = source

    def __getitem__(self, i: int) -> Record:
        return inspect(self.source, i)


def _as_is(record: Record) -> Record:
    return record


def survey(source: EncodedPhotos, workers: int = 0, quiet: bool = True) -> Iterator[Record]:
    """A record of every photograph, in order.

    Args:
        workers: processes that decode; 0 decodes in this one.
        quiet: no progress bar.
    """
    loader = DataLoader(
        _Inspection(source),
        batch_size=None,
        sampler=range(len(source)),
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=prepare_worker,
    )
    with _interrupts_later():
        records = iter(loader)
    return iter(tqdm(records, total=len(source), **bar_options(quiet)))


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C waits until workers have started: they inherit that, and leave it to this process once they are prepared."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def bar_options(quiet: bool) -> dict:
    """A progress bar that does not fill a log."""
    interval = 0.3 if sys.stderr.isatty() else 15
    return {"unit": " photographs", "disable": quiet, "mininterval": interval, "dynamic_ncols": True}


def summarize(source: EncodedPhotos, records: list[Record]) -> dict:
    """What ``verify`` prints and writes: counts, sizes, formats, and all that is wrong by name."""
    good = [r for r in records if r.fault is None]
    by_hash: dict[str, list[str]] = {}
    for r in records:
        if r.sha256:
            by_hash.setdefault(r.sha256, []).append(r.name)
    summary = {
        "format": 1,
        "photographs": len(records),
        "bytes": sum(r.size for r in records),
        "formats": dict(Counter(r.format for r in good).most_common()),
        "modes": dict(Counter(r.mode for r in good).most_common()),
        "width": _spread([r.width for r in good]),
        "height": _spread([r.height for r in good]),
        "shorter_side": _spread([min(r.width, r.height) for r in good]),
        "unreadable": {r.name: r.fault for r in records if r.fault is not None and not is_truncated(r.fault)},
        "truncated": {r.name: r.fault or r.remark for r in records if is_truncated(r.fault or r.remark)},
        "truncated_read": source.limits.truncated == "read",
        "hdr": {r.name: r.remark for r in good if r.remark is not None and not is_truncated(r.remark)},
        "skipped": dict(source.skipped),
        "duplicates": [names for names in by_hash.values() if len(names) > 1],
        "others": dict(source.others),
    }
    if isinstance(source, PhotoShards):
        summary["shards"] = len(source.shards)
        summary["manifest"] = check_manifests(source)
    return summary


def _spread(values: list[int]) -> dict[str, float]:
    if not values:
        return {}
    return {"least": min(values), "median": statistics.median(values), "most": max(values)}


def is_good(summary: dict) -> bool:
    """Nothing unreadable, nothing skipped, shards as their manifest says. Duplicates are no fault, nor are truncated
    photographs that are read."""
    cut_off = summary["truncated"] and not summary["truncated_read"]
    return not (summary["unreadable"] or cut_off or summary["skipped"] or summary.get("manifest"))


def describe(summary: dict) -> str:
    """The summary in lines."""
    lines = [f"{summary['photographs']} photographs, {summary['bytes'] / 2**20:.1f} MiB"]
    if "shards" in summary:
        lines[0] += f", in {summary['shards']} shards"
    for key in ("formats", "modes"):
        if summary[key]:
            lines.append(f"{key}: " + ", ".join(f"{n} {k}" for k, n in summary[key].items()))
    if summary["others"]:
        lines.append(describe_ignored(summary["others"]))
    for key, words in (("width", "width"), ("height", "height"), ("shorter_side", "shorter side")):
        if s := summary[key]:
            lines.append(f"{words}: {s['least']} to {s['most']} pixels, median {s['median']:g}")
    told = [("unreadable", "unreadable"), ("skipped", "left out"), ("manifest", "not as in the manifest")]
    if summary["truncated"]:
        told.insert(
            1,
            (
                "truncated",
                "truncated, " + ("read" if summary["truncated_read"] else "left out without --truncated read"),
            ),
        )
    if summary["hdr"]:
        told.append(("hdr", "HDR, read as pictures of 8 bits"))
    for key, words in told:
        if key not in summary:
            continue
        found = summary[key]
        lines.append(f"{words}: {len(found)}")
        lines += [f"  {name}: {reason}" for name, reason in found.items()]
    twice = summary["duplicates"]
    lines.append(f"exact duplicates: {sum(len(names) - 1 for names in twice)}")
    lines += ["  " + " = ".join(names) for names in twice]
    return "\n".join(lines)


# ---- manifests -------------------------------------------------------------------------------------------------------
def check_manifests(source: PhotoShards) -> dict[str, str]:
    """What differs between shards and the manifest.json in their folder, where there is one: shard -> fault."""
    faults: dict[str, str] = {}
    here: dict[str, set[str]] = {}  # folder -> names of its shards
    for path in source.shards:
        name = remote.base_name(path) if remote.is_url(path) else os.path.basename(path)
        here.setdefault(folder_of(path), set()).add(name)
    for folder, names in here.items():
        path = in_folder(folder, MANIFEST)
        if not is_file(path):
            continue
        try:
            listed = {s["name"]: s for s in json.loads(read_file(path))["shards"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            faults[path] = f"is not a manifest: {type(error).__name__}: {error}"
            continue
        for name, entry in listed.items():
            if name not in names:
                if not is_file(in_folder(folder, name)):
                    faults[name] = "is missing"
                continue
            place = in_folder(folder, name)
            size, digest = size_of(place), hash_file(place)
            if (size, digest) != (wanted := (entry.get("bytes"), entry.get("sha256"))):
                faults[name] = f"has {size} bytes with SHA-256 {digest}, expected {wanted[0]}, {wanted[1]}"
        faults |= {name: "is not in the manifest" for name in sorted(names - set(listed))}
    return faults
