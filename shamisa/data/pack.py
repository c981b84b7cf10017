"""Pack photographs into tar shards: original bytes and names, the same output for the same input, all or nothing."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from .. import checks, remote
from .._version import __version__
from ..files import write_json
from .decode import is_truncated
from .formats import EXTENSIONS, count
from .photos import EncodedPhotos, PhotoFiles
from .shards import _tidy
from .verify import MANIFEST, Record, bar_options, survey

SHARD_SIZE = 1 << 30  # bytes


class PackError(Exception):
    """Photographs that cannot be packed; the message names them."""


def pack(
    source: EncodedPhotos,
    out: str | os.PathLike,
    *,
    shard_size: int | None = None,
    shard_count: int | None = None,
    skip_bad: bool = False,
    workers: int = 0,
    quiet: bool = True,
) -> dict:
    """Write ``shard-000000.tar``, ... and ``manifest.json`` into a new folder; -> the manifest.

    Every photograph is decoded first. The shards hold them in the order of the source, bytes as they are, without owner
    and time, so that packing twice gives the same files. All is written into ``OUT.partial``, which takes the name OUT
    when it is complete and is removed where packing fails; one left by a process that was killed is made anew.

    Args:
        source: photographs; their names become those of the members.
        out: must not exist, or be an empty folder.
        shard_size: bytes of a shard at most, 1 GiB by default; a larger photograph has a shard of its own.
        shard_count: this many shards of about equal numbers of photographs, instead.
        skip_bad: leave out what cannot be read (the manifest names it), instead of PackError.
        workers: processes that decode.
        quiet: no progress bars.

    Raises:
        ValueError: an argument out of range, a folder that is not empty, names that a shard cannot hold.
        PackError: photographs that cannot be read, or that changed meanwhile.
        OSError: the shards cannot be written.
    """
    if shard_size is not None and shard_count is not None:
        raise ValueError("shard_size and shard_count cannot be combined, got both")
    for name, given in (("shard_size", shard_size), ("shard_count", shard_count)):
        if given is not None:
            checks.integer(name, given, 1)
    names = _member_names(source)
    remote.check_local("out", out)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out must be a new or empty folder, got {str(out)!r}")
    if shard_count is not None and shard_count > len(source):
        raise ValueError(f"shard_count must be at most the {len(source)} photographs, got {shard_count}")
    partial = out.with_name(out.name + ".partial")
    _clear(partial)
    try:
        partial.mkdir(parents=True)  # a place that cannot be written to is told before hours of decoding
    except OSError as error:
        raise ValueError(f"out must be a folder that can be made, got {str(out)!r}: {error.strerror}") from None
    try:
        manifest = _fill(partial, source, names, shard_size or SHARD_SIZE, shard_count, skip_bad, workers, quiet)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except BaseException as error:  # Ctrl-C too
        _clear(partial)
        if isinstance(error, OSError):  # a full disk, most likely
            raise OSError(f"cannot write {str(out)!r}: {error.strerror or error}") from None
        raise
    return manifest


def _fill(
    partial: Path,
    source: EncodedPhotos,
    names: list[str],
    shard_size: int,
    shard_count: int | None,
    skip_bad: bool,
    workers: int,
    quiet: bool,
) -> dict:
    """Shards and manifest into an empty folder; -> the manifest."""
    records = list(survey(source, workers, quiet))
    bad = {r.name: r.fault for r in records if r.fault is not None} | source.skipped
    good = [i for i, r in enumerate(records) if r.fault is None]
    if bad and not skip_bad:
        shown = "".join(f"\n  {name}: {reason}" for name, reason in list(bad.items())[:20])
        more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
        cut_off = sum(map(is_truncated, bad.values()))
        apart = f"{count(cut_off, 'truncated JPEG')} among them, which --truncated read packs; " if cut_off else ""
        raise PackError(f"{len(bad)} photographs cannot be packed ({apart}--skip-bad leaves them out):{shown}{more}")
    if not good:
        raise PackError(f"none of the {len(records)} photographs can be read")
    if shard_count is not None and shard_count > len(good):
        raise PackError(f"shard_count must be at most the {len(good)} readable photographs, got {shard_count}")

    shards = []
    with tqdm(total=len(good), **bar_options(quiet)) as bar:
        for number, members in enumerate(_split(good, records, names, shard_size, shard_count)):
            name = f"shard-{number:06d}.tar"
            with open(partial / name, "xb") as file:
                digest, size = _write(file, source, members, records, names, bar)
            shards.append({"name": name, "photographs": len(members), "bytes": size, "sha256": digest})
    manifest = {
        "format": 1,
        "tool": f"shamisa {__version__}",
        "photographs": len(good),
        "bytes": sum(s["bytes"] for s in shards),
        "shards": shards,
        "skipped": bad,
        "truncated": [names[i] for i in good if is_truncated(records[i].remark)],
    }
    write_json(partial / MANIFEST, manifest)
    return manifest


def _member_names(source: EncodedPhotos) -> list[str]:
    """Names of the members; a list of paths that leave its folder is taken relative to their common folder."""
    names = [os.fsdecode(source._encoded_name(i)) for i in range(len(source))]
    if any(os.path.isabs(name) or ".." in name.split("/") for name in names):
        assert isinstance(source, PhotoFiles)
        paths = [os.path.abspath(source.path(i)) for i in range(len(source))]
        common = os.path.commonpath([os.path.dirname(p) for p in paths])
        names = [os.path.relpath(p, common) for p in paths]
    seen: set[str] = set()
    for name in names:
        if _tidy(name) != name or os.path.splitext(name)[1].lower() not in EXTENSIONS:
            raise ValueError(
                f"names must be paths without hidden parts, with one of {' '.join(EXTENSIONS)}, got {name!r}"
            )
        if name in seen:
            raise ValueError(f"names must differ, got {name!r} twice")
        seen.add(name)
    return names


def _clear(partial: Path) -> None:
    """Remove what an earlier run left, and nothing else."""
    if not partial.exists():
        return
    entries = list(partial.iterdir()) if partial.is_dir() else [partial]
    strange = [
        e.name for e in entries if not re.fullmatch(r"shard-\d{6,}\.tar|(manifest\.json|\.manifest\.json\.\d+)", e.name)
    ]
    if strange:
        raise ValueError(f"{str(partial)!r} must hold nothing but shards of an unfinished run, found {strange[0]!r}")
    for entry in entries:
        entry.unlink()
    partial.rmdir()


def _split(
    good: list[int], records: list[Record], names: list[str], shard_size: int, shard_count: int | None
) -> Iterator[list[int]]:
    """Photographs of one shard after the other."""
    if shard_count is not None:
        bounds = [k * len(good) // shard_count for k in range(shard_count + 1)]
        yield from (good[a:b] for a, b in zip(bounds, bounds[1:], strict=False))
        return
    end, record = 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE  # a tar ends with empty blocks and fills a record
    members: list[int] = []
    used = 0
    for i in good:
        size = len(_info(names[i], 0).tobuf(tarfile.PAX_FORMAT)) + -(-records[i].size // 512) * 512
        if members and -(-(used + size + end) // record) * record > shard_size:
            yield members
            members, used = [], 0
        members.append(i)
        used += size
    yield members


def _info(name: str, size: int) -> tarfile.TarInfo:
    """A header without owner and time: they would make equal input unequal output."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, 0, 0o644
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def _write(
    file: BinaryIO, source: EncodedPhotos, members: list[int], records: list[Record], names: list[str], bar: tqdm
) -> tuple[str, int]:
    """SHA-256 and bytes of the tar of some photographs."""
    target = _Hashed(file)
    with tarfile.TarFile(fileobj=target, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar:
        for i in members:
            data = source.encoded(i)
            if hashlib.sha256(data).hexdigest() != records[i].sha256:
                raise PackError(f"{records[i].name} changed while it was packed")
            tar.addfile(_info(names[i], len(data)), io.BytesIO(data))
            bar.update()
    file.flush()
    os.fsync(file.fileno())
    return target.digest.hexdigest(), target.tell()


class _Hashed:
    """A file to write to, with the hash of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.file.tell()
