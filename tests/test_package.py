"""The package itself: quiet import, the compiled libraries found from a checkout, the command's words."""

import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import shamisa
from shamisa import cli
from shamisa._compiled import installed_folder

ROOT = Path(shamisa.__file__).parents[1]


def run(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)} | env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_import_is_quiet_and_shamisa_native_0_goes_without_kernels():
    assert run("import shamisa") == ""
    alone = run("import shamisa; print(set(shamisa.backends().values()))", SHAMISA_NATIVE="0")
    assert alone.strip() == "{('reference',)}"


def test_a_checkout_uses_the_installed_libraries(tmp_path, monkeypatch):
    checkout, site = tmp_path / "checkout/shamisa", tmp_path / "site"
    checkout.mkdir(parents=True)
    (site / "shamisa").mkdir(parents=True)
    info = site / "shamisa-0.dist-info"
    info.mkdir()
    monkeypatch.setattr(sys, "path", [str(site)])
    (info / "METADATA").write_text(f"Name: shamisa\nVersion: {shamisa.__version__}\n")
    assert installed_folder([str(checkout)]) == []  # installed without libraries
    (site / "shamisa/_C.abi3.so").touch()
    assert installed_folder([str(checkout)]) == [str(site / "shamisa")]
    (info / "METADATA").write_text("Name: shamisa\nVersion: 0.0.0.1\n")
    assert installed_folder([str(checkout)]) == []  # another version
    (checkout / "_C.abi3.so").touch()
    assert installed_folder([str(checkout)]) == []  # built in place


@pytest.mark.parametrize("name", ["_C", "_C_cuda", "_kernels"])
def test_one_library_serves_every_python(name):
    found = find_spec(f"shamisa.{name}")
    if found is None:
        pytest.skip(f"{name} is not built")
    assert Path(found.origin).name == f"{name}.abi3.so"


def test_public_names():
    assert set(shamisa.__all__) <= set(dir(shamisa))
    assert all(getattr(shamisa, name) is not None for name in shamisa.__all__)
    assert (Path(shamisa.__file__).parent / "py.typed").exists()


def test_command(capsys):
    assert cli.main(["--version"]) == 0 and shamisa.__version__ in capsys.readouterr().out
    assert cli.main([]) == 0 and "probe" in capsys.readouterr().out
    assert cli.main(["paint"]) == 2 and "unknown command 'paint'" in capsys.readouterr().err


def test_python_m_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["shamisa", "--version"])
    with pytest.raises(SystemExit) as done:
        runpy.run_module("shamisa", run_name="__main__")
    assert done.value.code == 0 and shamisa.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0 and name in capsys.readouterr().out
