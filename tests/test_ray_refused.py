"""What ``shamisa score --ray`` refuses without a cluster: one line, status 2, and nothing written."""

import json
import socket
import sys
import threading

import pytest
from fitted import SMALL, fitted

from shamisa import ray as on_ray
from shamisa import score

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")


@pytest.fixture
def listener():
    """-> a function: the address of a server that answers so, or never."""
    sockets = []

    def listen(answer):
        sockets.append(server := socket.create_server(("127.0.0.1", 0)))

        def serve():
            client, _ = server.accept()
            sockets.append(client)
            client.sendall(answer)
            if answer:
                client.shutdown(socket.SHUT_WR)

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield listen
    for one in sockets:
        one.close()


@pytest.fixture
def refused(photos, tmp_path, monkeypatch, capsys):
    """-> a function of options of the command: the line that it prints, where it does nothing else."""
    regressor = fitted(tmp_path)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*words):
        model = ["--checkpoint", SMALL, "--regressor", str(regressor), "--device", "cpu", "--quiet"]
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert score.main([str(photos), *model, "--out", "parts", *words]) == 2
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("shamisa score: ")

    return call


def test_no_cluster(refused, listener, monkeypatch):
    monkeypatch.setattr(on_ray, "_CONNECT_SECONDS", 0.3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    other, silent = listener(b"HTTP/1.0 400 Bad Request\r\n\r\n"), listener(b"")
    assert refused("--ray", nobody) == f"no Ray cluster answers at {nobody}: Connection refused"
    assert refused("--ray", f"ray://{nobody}") == f"no Ray cluster answers at ray://{nobody}: Connection refused"
    assert refused("--ray", other) == f"no Ray cluster answers at {other}: something else listens there"
    assert refused("--ray", silent) == f"no Ray cluster answers at {silent}: timed out"
    assert refused("--ray", "nonsense") == "the address of a Ray cluster must be auto or HOST:PORT, got 'nonsense'"
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    assert refused("--ray", "auto") == f"no Ray cluster answers at {nobody}: Connection refused"


def test_cluster_refuses(refused, listener, monkeypatch):
    """What listens greets as Ray does, and Ray gives up."""

    def init(**_):
        raise ConnectionError("Failed\nto connect")

    monkeypatch.setattr(ray, "init", init)
    place = listener(b"\0\0\0\4\0\0\0\0\0")
    line = f"no Ray cluster at {place}: Failed to connect (one that wants a token: set RAY_AUTH_MODE=token)"
    assert refused("--ray", place) == line
    assert refused("--ray", "auto").startswith("no Ray cluster runs on this machine, and RAY_ADDRESS names none")


def test_missing_package(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    assert refused("--ray").startswith("scoring on Ray needs another package: pip install 'shamisa[ray]' (")


def test_parts_from_before(refused, tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/part-000000.parquet").write_bytes(b"")
    assert refused("--ray") == "--out parts exists: continue with --resume, or choose another"
    assert refused("--ray", "--resume").startswith("--out parts must hold parts and their meta.json: ")
    (tmp_path / "parts/meta.json").write_text(json.dumps({"encoder_hash": "another"}))
    assert refused("--ray", "--resume").startswith("parts was started with another encoder_hash, ")
