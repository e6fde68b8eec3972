"""torchvision's own download of pretrained weights: refused by their hash, unreachable, damaged, and from its cache.

download.pytorch.org is a proxy on this machine with a certificate of its own, so torch's code runs unchanged. A file
that has the right hash cannot be made up; the way in that succeeds is torch's cache.
"""

from __future__ import annotations

import io
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torchvision.models
from PIL import Image
from running import recipe, thawline, weights

from launcher import models
from launcher.errors import EnvironmentProblem
from launcher.recipe import ImageClassification, Model

NAME, FILE = "squeezenet1_1", "squeezenet1_1-b8a52dc0.pth"
MODEL, TASK = Model(source=f"torchvision:{NAME}"), ImageClassification(kind="image-classification")


@dataclass
class Site:
    """What download.pytorch.org holds, and what was asked of it."""

    content: bytes
    requests: list[str] = field(default_factory=list)


def state_dict(num_classes: int = 1000) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        found: dict[str, torch.Tensor] = torchvision.models.squeezenet1_1(num_classes=num_classes).state_dict()
    return found


def as_file(state: dict[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate that say they are download.pytorch.org's."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    file, host = tmp_path_factory.mktemp("certificate") / "both.pem", "download.pytorch.org"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={host}",
            "-addext", f"subjectAltName=DNS:{host}", "-keyout", file, "-out", f"{file}.crt",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    file.write_bytes(file.read_bytes() + Path(f"{file}.crt").read_bytes())
    return file


@pytest.fixture
def site(certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A proxy that is download.pytorch.org itself; torch asks it, and has an empty cache."""
    found = Site(content=as_file(state_dict()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            self.send_response(200)
            self.end_headers()
            with (
                context.wrap_socket(self.connection, server_side=True) as connection,
                connection.makefile("rb") as said,
            ):
                found.requests.append(f"{self.path} {said.readline().decode().strip()}")
                while said.readline().strip():
                    pass
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(found.content) + found.content
                )
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """`Site.requests` is the log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    for name in ("no_proxy", "NO_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


def problem(folder: Path) -> str:
    with pytest.raises(EnvironmentProblem) as raised:
        models.materialise(MODEL, TASK, ["cat", "dog"], 0, folder)
    return str(raised.value)


def test_another_file_than_its_name_promises_is_refused_and_not_kept(site: Site, tmp_path: Path) -> None:
    said = problem(tmp_path)
    assert site.requests == [f"download.pytorch.org:443 GET /models/{FILE} HTTP/1.1"]
    cached = tmp_path / "torch" / "hub" / "checkpoints"
    assert f"what came from https://download.pytorch.org/models/{FILE} is not that file" in said
    assert 'expected "b8a52dc0"' in said
    assert f"put the file there as {cached / FILE}, or set model.weights" in said
    assert list(cached.iterdir()) == []


def test_no_answer_says_what_to_do(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    said = problem(tmp_path)
    assert f"could not be downloaded from https://download.pytorch.org/models/{FILE}: <urlopen error" in said
    assert f"put the file there as {tmp_path / 'torch' / 'hub' / 'checkpoints' / FILE}" in said


@pytest.mark.parametrize("content", [b"", b"cut sh", as_file(state_dict())[:4000], as_file(state_dict(3))])
def test_a_damaged_file_in_the_cache_is_named(site: Site, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "torch" / "hub" / "checkpoints" / FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    said = problem(tmp_path)
    assert f"{file} is damaged (" in said
    assert "delete it, and it is downloaded again" in said
    assert site.requests == []


def test_a_run_starts_from_the_weights_in_torchs_cache(site: Site, tmp_path: Path) -> None:
    state = state_dict()
    file = Path(os.environ["TORCH_HOME"]) / "hub" / "checkpoints" / FILE
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    for label, grey in (("dark", 20), ("light", 220)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(6):
            Image.new("RGB", (40, 40), (grey + index, grey, grey)).save(tmp_path / "images" / label / f"{index}.png")
    written = recipe(
        tmp_path, [{"name": "head", "train": ["head"], "steps": 2}],
        task={"kind": "image-classification", "image_size": 64}, model={"source": f"torchvision:{NAME}"},
        data={"source": "imagefolder", "files": "images", "split": {"validation": 0.34, "stratify": "label"}},
    )  # fmt: skip
    thawline("run", written, "--ranks", "1", "--run-dir", tmp_path / "run")
    exported = weights(tmp_path / "run")
    body = [name for name in exported if name.startswith("features.")]
    assert len(body) == 50
    assert all(torch.equal(exported[name], state[name]) for name in body)
    assert exported["classifier.1.weight"].shape[0] == 2
    assert site.requests == []
