"""How fast a photograph is scored on a CPU, by what runs the encoder: ``python -m benchmarks.scoring PHOTOGRAPHS``.

Every variant gets the same crops of the same photographs, photograph by photograph, in turn, and is compared with the plain
path (float32, eager): median milliseconds for the ten crops of a photograph, and the largest and mean difference of the
score. A variant that cannot be had here is a row with the reason. Decoding and cropping are timed beside, once.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from shamisa.data.photos import PhotoFolder, read_photo
from shamisa.files import write_json
from shamisa.measuring import machine
from shamisa.scoring.crops import views
from shamisa.scoring.quality import QualityNet

from .peers import Missing, need

Encode = Callable[[Tensor], Tensor]  # normalised crops [10, 3, S, S] float32 -> h [10, F]
CALIBRATION = 16  # photographs that int8 ranges are taken from, not among those that are timed
LIMIT = 0.002  # of the score: what a faster path may differ by


# ---- variants --------------------------------------------------------------------------------------------------------
class WithEncoder(nn.Module):
    """Stands in for the encoder of a QualityNet."""

    def __init__(self, run: Encode) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def channels_last(encoder: nn.Module) -> Encode:
    encoder = copy.deepcopy(encoder).to(memory_format=torch.channels_last)
    return lambda x: encoder(x.contiguous(memory_format=torch.channels_last))


def bfloat16(encoder: nn.Module) -> Encode:
    run = channels_last(encoder)

    def encode(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return run(x).float()

    return encode


def compiled(encoder: nn.Module, freezing: bool) -> Encode:
    """torch.compile; ``freezing`` folds weights and batch normalisation into the program."""
    import torch._inductor.config as inductor

    program = torch.compile(copy.deepcopy(encoder), dynamic=False)

    def encode(x: Tensor) -> Tensor:
        with inductor.patch(freezing=freezing):  # asked for when the first call compiles
            return program(x)

    return encode


def write_onnx(encoder: nn.Module, crop: int, path: Path) -> Path:
    need("onnxscript")
    sample = torch.zeros(10, 3, crop, crop)
    names = {"input_names": ["x"], "output_names": ["h"]}
    torch.onnx.export(copy.deepcopy(encoder), (sample,), dynamo=True, verbose=False, **names).save(path)
    return path


def onnxruntime(path: Path, threads: int) -> Encode:
    library = need("onnxruntime")
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    session = library.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["h"], {"x": x.numpy()})[0])


def openvino(path: Path, threads: int, precision: str) -> Encode:
    library = need("openvino")
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    program = library.Core().compile_model(str(path), "CPU", settings)
    return lambda x: torch.from_numpy(program(x.numpy())[0].copy())


def int8(path: Path, threads: int, samples: list[np.ndarray]) -> Encode:
    """Quantised after training by onnxruntime, ranges from ``samples`` (normalised crops [10, 3, S, S])."""
    quantization = need("onnxruntime.quantization")

    class Samples(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(samples)

        def get_next(self) -> dict | None:
            x = next(self.rest, None)
            return None if x is None else {"x": x}

    place = path.with_suffix(".int8.onnx")
    quantization.quantize_static(path, place, Samples(), per_channel=True)
    return onnxruntime(place, threads)


def variants(
    net: QualityNet, folder: Path, threads: int, samples: list[np.ndarray]
) -> Iterator[tuple[str, Callable[[], Encode]]]:
    """(name, what builds it), the plain path first."""
    encoder, path = net.encoder, folder / "encoder.onnx"

    def exported() -> Path:
        return path if path.is_file() else write_onnx(encoder, net.crop, path)

    yield "eager float32", lambda: encoder
    yield "channels_last", lambda: channels_last(encoder)
    yield "bfloat16, channels_last", lambda: bfloat16(encoder)
    yield "torch.compile", lambda: compiled(encoder, freezing=False)
    yield "torch.compile, frozen", lambda: compiled(encoder, freezing=True)
    yield "onnxruntime", lambda: onnxruntime(exported(), threads)
    yield "onnxruntime, int8", lambda: int8(exported(), threads, samples)
    yield "openvino", lambda: openvino(exported(), threads, "f32")
    yield "openvino, bfloat16", lambda: openvino(exported(), threads, "bf16")


# ---- measurement -----------------------------------------------------------------------------------------------------
def build(net: QualityNet, folder: Path, threads: int, crops: list[Tensor], calibration: list[Tensor]) -> dict:
    """name -> a net that is warm, or the reason in words why there is none."""
    samples = [((c.flatten(0, 2).float() / 255 - net.mean) / net.std).numpy() for c in calibration]
    found: dict[str, QualityNet | str] = {}
    for name, make in variants(net, folder, threads, samples):
        try:
            run = make()
            other = copy.copy(net)
            other._modules = dict(net._modules) | {"encoder": WithEncoder(run)}
            for c in crops[:2]:
                other.predict(c)
            found[name] = other
        except Missing as error:
            found[name] = str(error)
        except Exception as error:  # compilers and converters raise anything
            found[name] = f"{type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0][:120]}"
    return found


@torch.no_grad()
def measure(nets: dict, crops: list[Tensor]) -> list[dict]:
    """A row for each variant, all of them in turn on every photograph."""
    times: dict[str, list[float]] = {n: [] for n in nets}
    scores: dict[str, list[float]] = {n: [] for n in nets}
    running = [n for n, net in nets.items() if not isinstance(net, str)]
    for i, c in enumerate(crops):
        for name in running[i % len(running) :] + running[: i % len(running)]:
            begin = time.perf_counter()
            score = nets[name].predict(c)[1]  # on the regressor's scale, before clipping
            times[name].append(time.perf_counter() - begin)
            scores[name].append(score.item())
    plain = running[0]
    low, high = nets[plain].about["low"], nets[plain].about["high"]
    rows = []
    for name, net in nets.items():
        if isinstance(net, str):
            rows.append({"variant": name, "missing": net})
            continue
        off = np.abs(np.subtract(scores[name], scores[plain])) / (high - low)
        median = statistics.median(times[name])
        rows.append(
            {
                "variant": name,
                "ms": 1e3 * median,
                "ratio": statistics.median(times[plain]) / median,
                "difference": float(off.max()),
                "difference_mean": float(off.mean()),
            }
        )
    return rows


def reading(paths: list[Path], crop: int) -> tuple[list[Tensor], float]:
    """Crops uint8 [1, 2, 5, 3, crop, crop] of every photograph, and the median milliseconds to decode and crop one."""
    crops, times = [], []
    for path in paths:
        begin = time.perf_counter()
        crops.append(views(read_photo(path), crop)[None])
        times.append(time.perf_counter() - begin)
    return crops, 1e3 * statistics.median(times)


def text(rows: list[dict], head: str) -> str:
    """The printed table."""
    width = max(len(r["variant"]) for r in rows) + 2
    lines = [head, f"{'encoder run by':{width}}{'ms':>8}{'ratio':>8}  largest difference of the score (mean)"]
    for r in rows:
        if "missing" in r:
            lines.append(f"{r['variant']:{width}}{r['missing']}")
            continue
        far = "" if r["difference"] <= LIMIT else f"  beyond {LIMIT:g}"
        lines.append(
            f"{r['variant']:{width}}{r['ms']:8.1f}{r['ratio']:8.2f}  {r['difference']:.1e} ({r['difference_mean']:.1e}){far}"
        )
    return "\n".join(lines)


def open_net(checkpoint: str | None, regressor: str | None) -> QualityNet:
    """The packaged model, or that of a run and a regressor."""
    if checkpoint is None:
        from shamisa.hub import QualityModel

        return QualityModel.packaged()
    from shamisa.scorer import load_quality_net

    return load_quality_net(checkpoint, regressor)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__, allow_abbrev=False)
    parser.add_argument("photographs", help="a folder")
    parser.add_argument("--checkpoint", metavar="RUN", help="with --regressor FILE; the packaged model without both")
    parser.add_argument("--regressor", metavar="FILE")
    parser.add_argument("--count", type=int, default=200, help="photographs [%(default)s]")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="each a table [%(default)s]")
    parser.add_argument("--out", metavar="JSON", help="also write the tables here")
    given = parser.parse_args(argv)
    if (given.checkpoint is None) != (given.regressor is None):
        parser.error("--checkpoint and --regressor belong together, got one of them")
    if given.count < 1 or min(given.threads) < 1:
        parser.error("--count and --threads must be at least 1")
    folder = PhotoFolder(given.photographs)
    paths = [Path(folder.path(i)) for i in range(min(len(folder), given.count + CALIBRATION))]
    if len(paths) <= CALIBRATION:
        parser.error(f"{given.photographs} must hold more than {CALIBRATION} photographs, got {len(paths)}")
    net = open_net(given.checkpoint, given.regressor)
    tables = []
    for threads in given.threads:
        torch.set_num_threads(threads)
        torch.compiler.reset()
        crops, ms = reading(paths, net.crop)
        with tempfile.TemporaryDirectory() as room, torch.no_grad():
            nets = build(net, Path(room), threads, crops[CALIBRATION:], crops[:CALIBRATION])
            rows = measure(nets, crops[CALIBRATION:])
        head = f"{len(crops) - CALIBRATION} photographs, {threads} threads; decoding and cropping {ms:.1f} ms each"
        print(text(rows, head), flush=True)
        tables.append({"threads": threads, "photographs": len(crops) - CALIBRATION, "read_ms": ms, "rows": rows})
    if given.out:
        content = {"machine": machine.machine(), "tables": tables}
        write_json(Path(given.out), json.loads(json.dumps(content)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
