"""Registers, stack and local memory of the CUDA kernels, read from the machine code: ``python benchmarks/registers.py``.

Local memory is where registers spill to, and where arrays end that a loop indexes. No kernel needs it: the check fails when
a kernel, or a function called from one, touches it at all and ALLOWED does not say why it may. The columns say where: in
innermost loops, where every pixel pays, or elsewhere.

Takes the built ``_C_cuda`` extension, or the files named. Needs no GPU, but cuobjdump and nvdisasm: of a CUDA toolkit, or
``pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

ALLOWED: dict[str, str] = {}  # function -> why it may touch local memory


@dataclass
class Function:
    """What one function of a kernel uses."""

    kernel: str
    name: str
    arch: str
    registers: int  # of the kernel
    stack: int  # bytes, of the kernel
    instructions: int = 0
    local: int = 0  # instructions that touch local memory
    innermost: int = 0  # of those, inside innermost loops
    share: float = 0.0  # largest share of local instructions in an innermost loop that does not call another function


def tool(name: str) -> str:
    """Path of a binary utility; RuntimeError where it is nowhere."""
    homes = [Path(h) / "bin" for h in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if h]
    packages = sorted(Path(sysconfig.get_paths()["purelib"]).glob("nvidia/*/bin"))
    found = shutil.which(name) or next((str(p / name) for p in (*homes, *packages) if (p / name).is_file()), None)
    if found is None:
        raise RuntimeError(f"{name} must be on PATH: pip install nvidia-cuda-{name}, or a CUDA toolkit")
    return found


def run(*command: str | Path, **options) -> str:
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True, **options).stdout


def short(names: list[str]) -> list[str]:
    """Demangled names without namespaces and arguments."""
    if shutil.which("c++filt") is None:
        return names
    plain = run("c++filt", input="\n".join(names)).splitlines()
    return [
        re.sub(r"^.*?(\w+)(<.*)?$", r"\1", re.sub(r"\(.*", "", n).replace("(anonymous namespace)::", "")) for n in plain
    ]


def functions_of(sass: str, arch: str, usage: dict[str, tuple[int, int]]) -> list[Function]:
    """Read a listing of nvdisasm -c."""
    labels: dict[str, int] = {}
    code: list[tuple[str, str]] = []  # (mangled function, instruction)
    kernel = name = ""
    for line in sass.splitlines():
        if line.startswith(".text.") and line.endswith(":"):
            kernel = name = line[len(".text.") : -1]
        elif match := re.match(r"^(\.L_x_\w+):", line):
            labels[match[1]] = len(code)
        elif match := re.match(r"^\$(\S+):$", line):
            name = match[1].split("$")[-1]  # a function inside the section of its kernel
        elif match := re.match(r"^\s+/\*[0-9a-f]+\*/\s+(.*);", line):
            code.append((f"{kernel}|{name}", match[1]))
    loops = set()
    for i, (_, text) in enumerate(code):
        match = re.search(r"\bBRA\b.*`\((\.L_x_\w+)\)", text)
        if match and labels.get(match[1], i + 1) <= i and code[labels[match[1]]][0] == code[i][0]:
            loops.add((labels[match[1]], i))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    local = [bool(re.search(r"\b(LDL|STL)\b", text)) for _, text in code]
    calls = [bool(re.search(r"\bCALL\b.*_Z", text)) for _, text in code]

    keys = list(dict.fromkeys(key for key, _ in code))
    kernels, names = (short([key.split("|")[part] for key in keys]) for part in (0, 1))
    found = {
        key: Function(k, n, arch, *usage.get(key.split("|")[0], (0, 0)))
        for key, k, n in zip(keys, kernels, names, strict=True)
    }
    for (key, _), touches in zip(code, local, strict=True):
        found[key].instructions += 1
        found[key].local += touches
    for first, last in inner:
        f, body = found[code[first][0]], range(first, last + 1)
        count = sum(local[i] for i in body)
        f.innermost += count
        if not any(calls[i] for i in body):
            f.share = max(f.share, count / len(body))
    return list(found.values())


def built() -> list[Path]:
    """The CUDA library of the package, installed or in this checkout; RuntimeError where it was not built."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    spec = importlib.util.find_spec("shamisa._C_cuda")
    if spec is None:
        raise RuntimeError("no shamisa._C_cuda: build it first (SHAMISA_CUDA=1), or name files")
    return [Path(spec.origin)]


def read(path: Path, arch: str | None) -> list[Function]:
    """All functions of the kernels in a library or object file."""
    found = []
    environment = {**os.environ, "PATH": f"{Path(tool('nvdisasm')).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    with tempfile.TemporaryDirectory() as folder:
        run(tool("cuobjdump"), "-xelf", "all", path.resolve(), cwd=folder, env=environment)
        for cubin in sorted(Path(folder).glob("*.cubin")):
            name = re.search(r"sm_\d+\w*", cubin.name)[0]
            if arch in (None, name):
                text = run(tool("cuobjdump"), "-res-usage", cubin, env=environment)
                lines = re.findall(r"Function (\S+):\s*\n?\s*REG:(\d+) STACK:(\d+)", text)
                usage = {kernel: (int(registers), int(stack)) for kernel, registers, stack in lines}
                found += functions_of(run(tool("nvdisasm"), "-c", cubin), name, usage)
    return found


def faults(functions: list[Function]) -> list[str]:
    """Functions that touch local memory and have no place in ALLOWED."""
    return [
        f"{f.arch} {f.kernel} / {f.name}: {f.local} instructions of local memory, {f.innermost} of them in innermost loops"
        for f in functions
        if f.local and f.name not in ALLOWED
    ]


def main(argv: list[str] | None = None) -> int:
    """The command -> 0, 1 for local memory where none may be, 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="libraries, objects or cubins [the built shamisa/_C_cuda]")
    parser.add_argument("--arch", help="only this one, as sm_90")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    given = parser.parse_args(argv)
    try:
        files = given.files or built()
        functions = [f for path in files for f in read(path, given.arch)]
        if not functions:
            raise RuntimeError(
                f"no kernels{f' for {given.arch}' if given.arch else ''} in {', '.join(map(str, files))}"
            )
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f"registers: {error}", file=sys.stderr)
        return 2
    print(
        f"{'arch':7}{'kernel':26}{'function':26}{'regs':>5}{'stack':>6}{'instr':>7}{'local':>6}{'in loops':>9}{'share':>7}"
    )
    for f in functions:
        print(
            f"{f.arch:7}{f.kernel[:25]:26}{f.name[:25]:26}{f.registers:5}{f.stack:6}{f.instructions:7}{f.local:6}"
            f"{f.innermost:9}{f.share:7.1%}"
        )
    if given.out:
        given.out.write_text(json.dumps([asdict(f) for f in functions], indent=1) + "\n")
    bad = faults(functions)
    print("\n".join(bad) or "no kernel touches local memory")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
