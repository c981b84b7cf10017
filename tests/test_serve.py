"""Scores over HTTP: the numbers of ``shamisa score``, every refusal with its status, and the page in a real browser."""

import asyncio
import http.client
import io
import json
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import skimage.data
import torch
from fitted import SMALL, fitted
from PIL import Image
from torch.testing import assert_close

from shamisa import score, serve

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from starlette.responses import HTMLResponse, Response  # noqa: E402
from starlette.routing import Route  # noqa: E402

from shamisa.serving.batcher import Batcher, Busy  # noqa: E402
from shamisa.serving.service import Service, describe  # noqa: E402

CHROMIUM = next((c for c in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if c), None)


def picture(width=90, height=60, kind="PNG", seed=0, **options):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise[:, : width // 2] = 128
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind, **options)
    return file.getvalue()


def bomb(width, height):
    """A PNG of a few bytes that says it has these sides."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    return score.load_scorer(SMALL, fitted(tmp_path_factory.mktemp("regressor")), device="cpu", batch=3)


class Running:
    """A service on loopback, in a thread."""

    def __init__(self, service):
        self.service, self.listening = service, socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self.listening.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(service.app, log_level="error", timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listening]})

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join()
        self.listening.close()

    def ask(self, method="POST", path="/score", body=None, **headers):
        """(status, content, headers)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            content = answer.read()
            is_json = answer.headers["content-type"] == "application/json"
            return answer.status, json.loads(content) if is_json else content.decode(), answer.headers
        finally:
            connection.close()


@pytest.fixture(scope="module")
def running(scorer):
    with Running(Service(scorer, max_bytes=200_000, max_pixels=1_000_000, max_seconds=20, waiting=64)) as running:
        yield running


# ---- scores ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind, options", [("PNG", {}), ("JPEG", {"quality": 80}), ("WEBP", {"quality": 80})])
def test_score_is_that_of_the_file(running, scorer, tmp_path, kind, options):
    data = picture(kind=kind, **options)
    (tmp_path / "a").write_bytes(data)
    status, answer, _ = running.ask(body=data)
    ((_, quality, raw),) = scorer.stream([str(tmp_path / "a")])
    assert status == 200 and (answer["score"], answer["raw"]) == (quality, raw)
    assert answer["scale"] == "1..5, higher is better" and (answer["width"], answer["height"]) == (90, 60)


def test_crops_say_where_they_lie_and_their_mean_is_the_score(running, scorer):
    _, answer, _ = running.ask(body=picture(90, 60))
    crops = answer["crops"]
    assert [c["place"] for c in crops] == ["top left", "top right", "bottom left", "bottom right", "centre"]
    assert [c["full"] for c in crops] == [
        [0, 0, 24, 24],
        [66, 0, 24, 24],
        [0, 36, 24, 24],
        [66, 36, 24, 24],
        [33, 18, 24, 24],
    ]
    assert crops[3]["half"] == [42, 12, 48, 48]
    assert_close(sum(c["raw"] for c in crops) / 5, answer["raw"], rtol=1e-9, atol=0)
    assert len({c["score"] for c in crops}) == 5
    _, answer, _ = running.ask(body=picture(20, 30))  # smaller than a crop: mirrored, all of it
    assert answer["crops"][0]["full"] == [0, 0, 20, 24] and answer["crops"][0]["half"] == [0, 0, 20, 30]


def test_place_with_noise_differs(scorer):
    """The scores of the places are those of photographs that show nothing else."""
    photo = torch.full((3, 200, 200), 128, dtype=torch.uint8)
    photo[:, :48, :48] = torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8)
    from shamisa.scoring.crops import views
    from shamisa.serving.service import Upload

    crops = views(photo, scorer.extractor.crop)
    found = describe(scorer, Upload(crops, 200, 200), scorer.extractor.encode(crops.unsqueeze(0))[0])["crops"]
    assert len({round(c["raw"], 9) for c in found[1:4]}) == 1 and found[0]["raw"] != found[1]["raw"]


def test_many_at_once_get_their_own_scores(running):
    photos = [picture(40 + i, 50, seed=i) for i in range(12)]
    alone = [running.ask(body=data)[1]["score"] for data in photos]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda data: running.ask(body=data), photos))
    assert [status for status, *_ in together] == [200] * 12
    assert_close([a["score"] for _, a, _ in together], alone, atol=1e-6, rtol=0)
    assert running.service.requests == 0 and running.service.held == 0


def test_batcher_gathers_what_waits_and_survives_errors():
    sizes = []

    def double(items):
        sizes.append(len(items))
        time.sleep(0.05)
        if "bad" in items:
            raise ValueError("bad")
        return [2 * item for item in items]

    async def work():
        batcher = Batcher(double, 4, 6)
        first = [asyncio.create_task(batcher.submit(i)) for i in range(7)]
        found = await asyncio.gather(*first, return_exceptions=True)
        assert [f for f in found if not isinstance(f, Busy)] == [0, 2, 4, 6, 8, 10] and sum(
            map(lambda f: isinstance(f, Busy), found)
        ) == 1
        with pytest.raises(ValueError, match="bad"):
            await batcher.submit("bad")
        assert await batcher.submit(4) == 8
        gone = asyncio.create_task(batcher.submit(5))
        await asyncio.sleep(0)
        gone.cancel()
        assert await batcher.submit(6) == 12
        await batcher.close()

    asyncio.run(work())
    assert max(sizes) == 4


# ---- refusals --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "body, status, reason",
    [
        (b"", 422, "is empty"),
        (b"hello, I am text" * 50, 422, "is not an image"),
        (picture(kind="JPEG", quality=90)[:2000], 422, "is truncated"),
        (picture()[:3000], 422, "Error: "),
        (bomb(2000, 2000), 413, "more than max_pixels = 1000000"),
        (bomb(60000, 60000), 413, "DecompressionBombError"),
        (bomb(300, 300), 422, ""),
        (picture(1100, 1000, "JPEG", quality=1), 413, "has 1100 x 1000 pixels"),
        (b"x" * 200_001, 413, "has 200001 bytes, more than max_bytes = 200000"),
        ((b"x" * 1000 for _ in range(300)), 413, "has more than max_bytes"),
    ],
    ids=("empty", "text", "truncated-jpeg", "truncated-png", "bomb", "giant", "short", "large", "announced", "chunked"),
)  # fmt: skip
def test_refusals(running, body, status, reason):
    got, answer, headers = running.ask(body=body)
    assert got == status and reason in answer["error"] and set(answer) == {"error"}, answer
    assert running.service.requests == 0 and running.service.held == 0
    assert running.ask(body=picture())[0] == 200


def test_slow_upload_and_a_sender_who_leaves(scorer):
    with Running(Service(scorer, max_seconds=0.5)) as running:
        with socket.create_connection(("127.0.0.1", running.port)) as slow:
            slow.sendall(b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
            assert b"408 Request Timeout" in slow.recv(1000)
        with socket.create_connection(("127.0.0.1", running.port)) as gone:
            gone.sendall(b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
            time.sleep(0.1)
        time.sleep(0.3)
        assert running.service.requests == 0 and running.service.held == 0
        assert running.ask(body=picture())[0] == 200


def test_too_many_and_too_slow(scorer, monkeypatch):
    service = Service(scorer, waiting=2, max_seconds=0.4)
    monkeypatch.setattr(service, "_decode", lambda data: time.sleep(1))
    with Running(service) as running, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: running.ask(body=picture()), range(4)))
    assert {status for status, *_ in found} == {503}
    reasons = " ".join(answer["error"] for _, answer, _ in found)
    assert "2 requests are being answered" in reasons and "the answer took longer than max_seconds" in reasons
    assert all(headers["retry-after"] == "1" for *_, headers in found)


def test_other_addresses(running):
    status, content, headers = running.ask("GET", "/")
    assert (
        status == 200 and "Score of a photograph" in content and "http" not in content.lower().replace("httpequiv", "")
    )
    assert "default-src 'none'" in headers["content-security-policy"]
    assert running.ask("GET", "/score")[0] == 405 and running.ask("GET", "/nothing")[0] == 404
    assert running.ask("GET", "/health")[1]["requests"] == 0
    assert (
        running.ask(body=picture(), Host="somewhere.example")[0] == 400
    )  # a page of another site whose name leads here


@pytest.mark.parametrize(
    "options, message", [({"max_pixels": 0}, "max_pixels must be"), ({"max_seconds": 0}, "more than 0"), ({"waiting": 0}, "waiting"), ({"workers": 0}, "workers")]
)  # fmt: skip
def test_limits_must_make_sense(scorer, options, message):
    with pytest.raises(ValueError, match=message):
        Service(scorer, **options)


def test_packaged_model(tmp_path):
    """A photograph as a camera writes it gets the score that the command prints for it."""
    file = io.BytesIO()
    Image.fromarray(skimage.data.astronaut()).save(file, "JPEG", quality=92)
    (tmp_path / "photo.jpg").write_bytes(file.getvalue())
    words = [str(tmp_path / "photo.jpg"), "--out", str(tmp_path / "s.csv"), "--device", "cpu", "--quiet"]
    assert score.main(words) == 0
    ((_, quality, raw, _),) = score.read_rows(tmp_path / "s.csv")
    with Running(Service(score.load_scorer(device="cpu"))) as running:
        status, answer, _ = running.ask(body=file.getvalue())
    assert status == 200 and (answer["width"], answer["height"]) == (512, 512)
    assert_close([answer["score"], answer["raw"]], [quality, raw], atol=1e-6, rtol=0)
    crops = answer["crops"]
    assert [c["full"] for c in crops[::3]] == [[0, 0, 224, 224], [288, 288, 224, 224]]
    assert [c["half"] for c in crops[::3]] == [[0, 0, 448, 448], [64, 64, 448, 448]]
    assert len({c["score"] for c in crops}) == 5
    assert_close(sum(c["raw"] for c in crops) / 5, answer["raw"], rtol=1e-9, atol=0)


# ---- the command -----------------------------------------------------------------------------------------------------
def test_command_bad_input(tmp_path, capsys, monkeypatch):
    regressor = fitted(tmp_path)
    given = ["--checkpoint", SMALL, "--regressor", str(regressor), "--device", "cpu"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert serve.main([*given, "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be listened on: Address already in use" in capsys.readouterr().err
    assert serve.main([*given, "--port", "70000"]) == 2 and "--port must lie in" in capsys.readouterr().err
    assert serve.main(["--checkpoint", "none", *given[2:], "--port", "0"]) == 2
    assert "checkpoint must be" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert serve.main(given) == 2 and "pip install 'shamisa[serve]'" in capsys.readouterr().err


@pytest.mark.slow
def test_command_serves_until_it_is_told_to_stop(tmp_path):
    words = ["--checkpoint", SMALL, "--regressor", str(fitted(tmp_path)), "--device", "cpu", "--port", "0"]
    process = subprocess.Popen([sys.executable, "-m", "shamisa", "serve", *words], stdout=subprocess.PIPE, text=True)
    try:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        connection.request("POST", "/score", picture())
        assert 0 <= json.loads(connection.getresponse().read())["score"] <= 1
        process.terminate()
        process.wait(timeout=60)
        assert process.returncode in (0, -15)
    finally:
        process.kill()
        process.wait()


# ---- the page --------------------------------------------------------------------------------------------------------
NAME = f"photo <b>{'_' * 200}.jpg"  # text, not markup, and broken over lines
DRIVER = """<script>
(async () => {
  const data = await (await fetch("/photo")).blob(), files = new DataTransfer();
  files.items.add(new File([data], "NAME", { type: data.type }));
  dispatchEvent(new DragEvent("drop", { dataTransfer: files }));
  while (get("result").hidden && !get("error").textContent) await new Promise(done => setTimeout(done, 20));
  const d = document.documentElement;
  document.body.dataset.found = JSON.stringify({ wide: d.scrollWidth - d.clientWidth, score: get("score").textContent,
    error: get("error").textContent, status: get("status").textContent, rows: [...get("crops").rows].map(r => r.innerText),
    boxes: [...get("frame").querySelectorAll("div")].map(b => b.className + " " + b.style.left),
    chosen: [...get("file").files].map(f => f.name) });
})();
</script>""".replace("NAME", NAME)


def browse(scorer, data, tmp_path, *extra):
    """What the page shows after a photograph was dropped on it, in a browser."""
    service = Service(scorer)
    content = running_page = None

    async def driven(_):
        return HTMLResponse(content)

    async def photo(_):
        return Response(data, media_type="image/jpeg")

    service.app.router.routes += [Route("/driven", driven), Route("/photo", photo)]
    with Running(service) as running:
        _, running_page, _ = running.ask("GET", "/")
        content = running_page.replace("</body>", DRIVER + "</body>")
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        flags = [
            *flags.split(),
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}",
        ]
        command = [CHROMIUM, *flags, "--virtual-time-budget=20000", *extra, f"http://127.0.0.1:{running.port}/driven"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    import html

    return json.loads(html.unescape(found[1]))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
@pytest.mark.parametrize("width", [1280, 500])
def test_page_shows_score_crops_and_the_lowest(scorer, tmp_path, width):
    data = picture(400, 300, "JPEG", quality=90)
    found = browse(scorer, data, tmp_path, "--dump-dom", f"--window-size={width},1000")
    (tmp_path / "a.jpg").write_bytes(data)
    ((_, quality, _),) = scorer.stream([str(tmp_path / "a.jpg")])
    assert found["score"] == f"{quality:.3f}" and found["error"] == "" and found["wide"] <= 0
    assert len(found["rows"]) == 5 and sum("(lowest)" in row for row in found["rows"]) == 1
    numbers = [float(row.split()[-1]) for row in found["rows"]]
    low = next(i for i, row in enumerate(found["rows"]) if "(lowest)" in row)
    assert numbers[low] == min(numbers) and [box.split()[:2] for box in found["boxes"]] == [
        ["half", "low"],
        ["full", "low"],
    ]
    assert found["status"] == NAME and found["chosen"] == [NAME]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
def test_page_shows_the_reason_of_a_refusal(scorer, tmp_path):
    found = browse(scorer, b"no photograph", tmp_path, "--dump-dom", "--window-size=500,1000")
    assert found["error"] == f"{NAME}: is not an image that Pillow can read" and found["rows"] == []
    assert found["wide"] <= 0
