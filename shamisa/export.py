"""Export encoder and regressor as one program that needs no part of this package: images in, scores out (.onnx or .pt2).

Input: images uint8 [n, 3, height, width], RGB, of any n, height and width (at least 3 pixels). Output: score [n] in 0..1,
higher is better, and raw [n] on the scale of the regressor's training labels. The program takes the crops, halves the size
and mirrors small images itself, with the pixels of `shamisa score` bit for bit. Before the file gets its name it is loaded
in onnxruntime or torch.export, and compared with this package on images of several sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from . import remote
from ._version import __version__
from .checks import MissingPackage
from .cli import guard
from .datasets.labels import describe_scale
from .networks.encoders import describe
from .scoring.crops import FULL, shrink, ten_crops
from .scoring.quality import QualityNet

ENDINGS = (".onnx", ".pt2")
LIMIT = 1e-4  # largest difference of a score from this package's, on its scale of 0..1, before clipping
_KEY = "shamisa"  # of the metadata in both formats
_OPSET = 20


class Program(nn.Module):
    """What is exported: images uint8 [n, 3, height, width] -> score [n], raw [n], float32."""

    def __init__(self, net: QualityNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.net.predict(ten_crops(shrink(images, self.net.view), self.net.crop))


def trace(net: QualityNet) -> torch.export.ExportedProgram:
    """The program of a net, for the CPU, in free batch size, height and width."""
    free = torch.export.Dim.DYNAMIC
    sample = torch.zeros(
        2, 3, net.crop + 7, net.crop + 12, dtype=torch.uint8
    )  # no two sizes equal: equal ones are tied
    program = torch.export.export(
        Program(net).eval(), (sample,), dynamic_shapes={"images": {0: free, 2: free, 3: free}}
    )
    for graph in (m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)):
        for node in graph.nodes:  # paths of this machine
            node.meta.pop("stack_trace", None)
    return program


def about(net: QualityNet, encoder_hash: str) -> dict:
    """The metadata stored in a file (JSON values)."""
    return {
        "shamisa": __version__,
        "input": "images uint8 [n, 3, height, width], RGB",
        "score": "[n] in 0..1, higher is better",
        "raw": f"[n] on {describe_scale(**net.regressor().scale)}",
        "crop": net.crop,
        "view": net.view or FULL,
        **describe(net.encoder),
        "encoder_hash": encoder_hash,
        "regressor": net.about,
    }


# ---- formats ---------------------------------------------------------------------------------------------------------
def _need(*modules: str) -> None:
    from importlib.util import find_spec

    missing = [m for m in modules if find_spec(m) is None]
    if missing:
        raise MissingPackage(
            f"--out .onnx needs {', '.join(missing)}: pip install 'shamisa[export]', or export to .pt2"
        )


def _write_onnx(program: torch.export.ExportedProgram, path: Path, metadata: dict) -> None:
    names = {"input_names": ["images"], "output_names": ["score", "raw"]}
    written = torch.onnx.export(program, dynamo=True, opset_version=_OPSET, verbose=False, **names)
    for node in written.model.graph:
        node.metadata_props.clear()
    written.model.metadata_props[_KEY] = json.dumps(metadata)
    written.save(path)


def _run_onnx(path: Path) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        score, raw = session.run(["score", "raw"], {"images": images.numpy()})
        return torch.from_numpy(score), torch.from_numpy(raw)

    return run


def _write_pt2(program: torch.export.ExportedProgram, path: Path, metadata: dict) -> None:
    program.example_inputs = None  # the one part of the archive that would be pickled
    torch.export.save(program, path, extra_files={f"{_KEY}.json": json.dumps(metadata)})


def load_program(path: str | os.PathLike) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Load a .pt2 file, images uint8 [n, 3, height, width] -> score [n], raw [n], with nothing unpickled.

    ``torch.export.load`` unpickles what an archive declares as pickled, hence runs any code of a hostile file. The files
    written here have no such part; one that has is refused before it is loaded.

    Raises:
        ValueError: not such an archive, or one with pickled parts.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                _refuse_pickled(archive, entry, path)
            if not any("/models/" in n and n.endswith(".json") for n in archive.namelist()):
                raise ValueError(
                    f"{path} must be a .pt2 file written by shamisa.export, got an archive without a model"
                )
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"cannot read the program {path}: {error}") from None
    return torch.export.load(path).module()


def _refuse_pickled(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: str | os.PathLike) -> None:
    folder, _, name = entry.filename.partition("/")[2].rpartition("/")
    if folder in ("data/weights", "data/constants") and name.endswith("_config.json"):
        for key, payload in json.loads(archive.read(entry))["config"].items():
            kept = payload["path_name"].startswith(("weight_", "tensor_"))
            if payload["use_pickle"] or not kept:
                raise ValueError(f"{path} must hold plain tensors only, got the pickled {key}")
    if folder == "data/sample_inputs" and entry.file_size:
        raise ValueError(f"{path} must hold plain tensors only, got pickled sample inputs")


# ---- export ----------------------------------------------------------------------------------------------------------
def difference(run: Callable[[Tensor], tuple[Tensor, Tensor]], net: QualityNet) -> float:
    """Largest difference of a program from the net, on the scale 0..1 but not clipped, over sizes below, at and above the
    crop, even and odd, and batches of 1 and 3."""
    crop, found = net.crop, []
    generator = torch.Generator().manual_seed(0)
    for n, height, width in (
        (1, 33, crop - 1),
        (3, crop, crop + 1),
        (1, 2 * crop + 1, 3 * crop),
        (3, 4 * crop + 3, 60),
    ):
        coarse = torch.rand(n, 3, height // 16 + 1, width // 16 + 1, generator=generator)
        smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
        noisy = smooth + 0.2 * torch.randn(n, 3, height, width, generator=generator)
        images = (noisy.clamp(0, 1) * 255).to(torch.uint8)
        with torch.no_grad():
            expected_score, expected_raw = net.predict(net.crops(images))
        score, raw = run(images)
        if score.shape != expected_score.shape or raw.shape != expected_raw.shape:
            raise RuntimeError(f"the program must give [{n}] and [{n}], got {list(score.shape)} and {list(raw.shape)}")
        apart = (raw - expected_raw).abs() / (net.about["high"] - net.about["low"])
        found += [(score - expected_score).abs(), apart]
    return torch.cat(found).max().item()  # NaN where there is one


def check_out(out: str | os.PathLike) -> Path:
    """The path of a program; ValueError for another ending or no such folder, RuntimeError for a missing package."""
    remote.check_local("out", out)
    out = Path(out)
    if out.suffix not in ENDINGS:
        raise ValueError(f"out must end in {' or '.join(ENDINGS)}, got {str(out)!r}")
    if not out.parent.is_dir():
        raise ValueError(f"out must lie in an existing folder, got {out.parent}")
    if out.suffix == ".onnx":
        _need("onnx", "onnxscript", "onnxruntime")
    return out


def export(net: QualityNet, out: str | os.PathLike, encoder_hash: str) -> float:
    """Write the program of a net (on the CPU) and return its ``difference``, at most ``LIMIT``.

    Args:
        out: a path that ends in .onnx or .pt2; replaced at once.
        encoder_hash: ``features.hash_encoder`` of the encoder, for the metadata.

    Raises:
        ValueError: another ending, or no such folder.
        RuntimeError: a missing package, or a program that differs from this package (nothing is left behind then).
    """
    out = check_out(out)
    onnx = out.suffix == ".onnx"
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
        temporary = Path(folder) / out.name
        (_write_onnx if onnx else _write_pt2)(trace(net), temporary, about(net, encoder_hash))
        worst = difference((_run_onnx if onnx else load_program)(temporary), net)
        if not worst <= LIMIT:  # NaN too
            raise RuntimeError(f"the program must give this package's scores within {LIMIT:g}, got {worst:.2g}")
        os.replace(temporary, out)
    return worst


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="shamisa export",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", metavar="RUN", help="as in shamisa score [the packaged model]")
    parser.add_argument(
        "--regressor", metavar="FILE", help="regressor.safetensors written by the probe [that of the packaged model]"
    )
    parser.add_argument(
        "--view", default="fitted", metavar="PIXELS|full|fitted", help="as in shamisa score [%(default)s]"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the program, .onnx or .pt2")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit status 0; 2 for bad input or a program that differs, 130 interrupted, told on stderr in one line."""
    given = make_parser().parse_args(argv)
    return guard("export", lambda: run(given), "nothing was written")


def run(given: argparse.Namespace) -> int:
    """Everything between the command line and the exit status."""
    from .scorer import load_quality_net
    from .scoring.features import hash_encoder

    check_out(given.out)
    net = load_quality_net(given.checkpoint, given.regressor, view=given.view)
    worst = export(net, given.out, hash_encoder(net.encoder))
    loader = "onnxruntime" if given.out.endswith(".onnx") else "torch.export"
    size = Path(given.out).stat().st_size / 1e6
    print(
        f"{given.out}: {size:.1f} MB; scores in {loader} differ by at most {worst:.1e} from this package's (limit {LIMIT:g})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
