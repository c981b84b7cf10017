"""Builds shamisa._kernels (CPU, no torch), shamisa._C (CPU ops) and, where it can, shamisa._C_cuda (CUDA ops).

None is tied to a Python or torch version: the stable ABI of torch 2.10, Python's limited API, and plain C for _kernels.

Environment: SHAMISA_CUDA=0 leaves the CUDA ops out, =1 makes it an error when they cannot be built, unset goes by what
is there. SHAMISA_NATIVE=0 builds nothing: the package then runs on its PyTorch reference. TORCH_CUDA_ARCH_LIST chooses
the GPU architectures (default "8.0;9.0+PTX"), MAX_JOBS the parallel compiles, CXX the compiler, CUDA_HOME the toolkit.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import setuptools
from setuptools import Extension, setup

ROOT = Path(__file__).parent
X86 = ["-DSHAMISA_X86"] if platform.machine().lower() in ("x86_64", "amd64") else []
LEVELS = ["v2", "v3", "v4"] if X86 else ["any"]  # one build of the CPU kernels for each, chosen at load
COMPILER = shlex.split(os.environ.get("CXX", "c++"))
STABLE = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPy_LIMITED_API=0x030A0000"]  # torch 2.10, Python 3.10
CXX = ["-std=c++17", "-O3", "-fvisibility=hidden", "-g0", "-Wall", "-Wextra"]
# No contraction: every level and the GPU give the same bits. The other two let the compiler vectorise selects and
# square roots and change no result (unlike -ffast-math).
KERNEL = [*CXX, "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
NVCC = ["-std=c++17", "-O3", "-fmad=false", "--expt-relaxed-constexpr", "-lineinfo", "-DUSE_CUDA"]
RELATIVE = f"-fmacro-prefix-map={ROOT.resolve()}/="  # the errors of ops name csrc/..., not the folder of this machine
HEADERS = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "csrc").rglob("*")) if p.suffix in (".h", ".cuh")]


if int(setuptools.__version__.split(".")[0]) < 77:  # older ones reject the licence line of pyproject.toml
    sys.exit(f"shamisa: setuptools must be 77 or newer, got {setuptools.__version__}: pip install 'setuptools>=77'")


def sources(pattern: str) -> list[str]:
    return [str(p.relative_to(ROOT)) for p in sorted((ROOT / "csrc").glob(pattern))]


def cuda_home() -> str | None:
    """A CUDA toolkit is a folder with headers; the nvcc on PATH may be a wrapper somewhere else."""
    nvcc = shutil.which("nvcc")
    guesses = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), nvcc and Path(nvcc).resolve().parents[1])
    for guess in (*guesses, "/usr/local/cuda"):
        if guess and (Path(guess) / "include/cuda_runtime.h").exists() and (Path(guess) / "bin/nvcc").exists():
            return str(guess)
    return None


def why_no_cuda(home: str | None, torch) -> str | None:
    """None when the CUDA ops can be built, else the reason."""
    if os.environ.get("SHAMISA_CUDA") == "0":
        return "SHAMISA_CUDA=0"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build"
    if home is None:
        return "no CUDA toolkit found (set CUDA_HOME)"
    out = subprocess.run([f"{home}/bin/nvcc", "--version"], capture_output=True, text=True).stdout
    nvcc = re.search(r"release (\d+)\.(\d+)", out)
    if nvcc and nvcc[1] != torch.version.cuda.split(".")[0]:
        return f"nvcc is {nvcc[1]}.{nvcc[2]}, torch was built with CUDA {torch.version.cuda}"
    return None


def commit() -> str:
    try:
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_catalogue(folder: Path) -> Path:
    """The header that csrc/distort/catalogue.py makes from the table of distortions."""
    subprocess.run([sys.executable, "csrc/distort/catalogue.py", str(folder)], check=True)
    return folder / "catalogue_rows.h"


def compile_kernels(folder: Path, catalogue: Path) -> list[str]:
    """Compile the *_level.cpp of csrc/cpu for every level, and the choice among them, into folder; returns the objects."""
    folder.mkdir(parents=True, exist_ok=True)
    newest = max(Path(p).stat().st_mtime for p in (*HEADERS, catalogue, "setup.py"))
    wanted = [("csrc/cpu/levels.cpp", "", X86)]
    for source in sources("cpu/**/*_level.cpp"):
        for level in LEVELS:
            march = [*X86, f"-march=x86-64-{level}"] if X86 else []
            wanted.append((source, f"_{level}", [*march, f"-DSHAMISA_LEVEL={level}"]))
    objects, commands = [], []
    for source, suffix, flags in wanted:
        made = folder / f"{Path(source).stem}{suffix}.o"
        objects.append(str(made))
        if not made.exists() or made.stat().st_mtime < max(newest, Path(source).stat().st_mtime):
            commands.append([*COMPILER, *KERNEL, *flags, f"-I{catalogue.parent}", "-c", source, "-o", str(made)])
    with ThreadPoolExecutor(int(os.environ["MAX_JOBS"])) as pool:
        for _ in pool.map(lambda command: subprocess.run(command, check=True), commands):
            pass
    return objects


def native() -> dict:
    """The arguments of setup() that build the extension modules."""
    os.chdir(ROOT)
    home = cuda_home()
    if home:
        os.environ["CUDA_HOME"] = home  # torch.utils.cpp_extension reads it when imported
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")  # without a GPU torch finds no default
    os.environ.setdefault("MAX_JOBS", str(min(os.cpu_count() or 1, 8)))
    if shutil.which(COMPILER[0]) is None:
        sys.exit(f"shamisa: no C++ compiler {COMPILER[0]!r} found; set CXX, or SHAMISA_NATIVE=0 to go without kernels")
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        sys.exit(
            f"shamisa builds against torch>=2.10, which this environment lacks ({error}): install torch first, "
            "or drop --no-build-isolation"
        )
    missing = why_no_cuda(home, torch)
    if missing and os.environ.get("SHAMISA_CUDA") == "1":
        sys.exit(f"shamisa: SHAMISA_CUDA=1, but {missing}")
    state = f"not built: {missing}" if missing else f"{home}, {os.environ['TORCH_CUDA_ARCH_LIST']}"
    print("shamisa: CPU ops only," if missing else "shamisa: CPU and CUDA ops,", missing or state, file=sys.stderr)

    version = re.search(r'"(.+)"', Path("shamisa/_version.py").read_text())[1]
    facts = {
        "SHAMISA_VERSION": version,
        "SHAMISA_COMMIT": commit(),
        "SHAMISA_FLAGS": " ".join(KERNEL),
        "SHAMISA_TORCH": torch.__version__,
        "SHAMISA_CUDA_STATE": state,
    }
    ops_cpu = [s for s in sources("cpu/**/*.cpp") if not s.endswith(("_level.cpp", "levels.cpp"))]

    def ops(kind, name, files, **flags):
        macros = [("MODULE_NAME", f'"{name}"'), ("MODULE_INIT", f"PyInit_{name}")]
        files = [*files, "csrc/host/module.c"]
        build = {"extra_compile_args": flags, "define_macros": macros, "depends": HEADERS}
        return kind(f"shamisa.{name}", files, py_limited_api=True, **build)

    modules = [
        Extension(
            "shamisa._kernels",
            ["csrc/host/bind.cpp"],
            py_limited_api=True,
            extra_compile_args={"cxx": [*CXX, *(f'-D{k}="{v}"' for k, v in facts.items())]},
            depends=HEADERS,
            language="c++",
        ),
        ops(CppExtension, "_C", ops_cpu, cxx=[*CXX, *STABLE, *X86, RELATIVE]),
    ]
    if not missing:
        flags = {"cxx": [*CXX, *STABLE, RELATIVE], "nvcc": [*NVCC, *STABLE, "-Xcompiler", RELATIVE]}
        modules.append(ops(CUDAExtension, "_C_cuda", sources("cuda/**/*.cu"), **flags))

    class Build(BuildExtension):
        def build_extensions(self):
            folder = Path(self.build_temp).resolve()
            catalogue = write_catalogue(folder / "generated")
            objects = compile_kernels(folder / "kernels", catalogue)
            for module in self.extensions:
                module.include_dirs = [*module.include_dirs, str(catalogue.parent)]
                module.depends = [*module.depends, str(catalogue)]
                if module.name != "shamisa._C_cuda":
                    module.extra_objects = objects
                    module.depends = [*module.depends, *objects]
            super().build_extensions()

    tag = {"bdist_wheel": {"py_limited_api": "cp310"}}
    return {"ext_modules": modules, "cmdclass": {"build_ext": Build}, "options": tag}


setup(**({} if os.environ.get("SHAMISA_NATIVE") == "0" else native()))
