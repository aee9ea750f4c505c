"""What `make conformance` stands on: fetching upstream's tests from an index, and saying what is a fault."""

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
import index
import run


def sdist(version: str) -> bytes:
    """A source distribution with tests and a package, as transformers' is."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name in ("tests/test_modeling_common.py", "tests/fixtures/data.bin", "src/transformers/__init__.py"):
            member = tarfile.TarInfo(f"transformers-{version}/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    return stream.getvalue()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """The answers of an index by path, over a real socket; the index is the one that pip would ask."""
    answers: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = answers.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
    monkeypatch.setattr(index, "CACHE", tmp_path / "cache")
    files = []
    for version, yanked in (("5.1.0", False), ("5.10.0", False), ("5.2.0", "broken"), ("6.0.0rc1", False)):
        content = sdist(version)
        answers[f"/files/transformers-{version}.tar.gz"] = content
        for name in (f"transformers-{version}.tar.gz", f"transformers-{version}-py3-none-any.whl"):
            hashes = {"sha256": hashlib.sha256(content).hexdigest()}
            files.append({"filename": name, "url": f"../../files/{name}", "hashes": hashes, "yanked": yanked})
    answers["/simple/transformers/"] = json.dumps({"files": files}).encode()
    yield answers
    server.shutdown()
    server.server_close()


def test_releases_in_their_order(served: dict[str, bytes]) -> None:
    assert [str(version) for version in index.releases()] == ["5.1.0", "5.10.0"]


def test_the_tests_are_fetched_once(served: dict[str, bytes], tmp_path: Path) -> None:
    folder = index.fetch_tests("5.10.0")
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["test_modeling_common.py"]
    served.clear()
    assert index.fetch_tests("5.10.0") == folder


def test_what_is_not_the_file_that_was_promised_is_refused(served: dict[str, bytes], tmp_path: Path) -> None:
    served["/files/transformers-5.10.0.tar.gz"] = sdist("5.1.0")
    with pytest.raises(ValueError, match=r"transformers-5.10.0.tar.gz is not the file .* SHA-256 differs"):
        index.fetch_tests("5.10.0")
    assert not list(tmp_path.rglob("*.py"))
    with pytest.raises(FileNotFoundError, match=r"has no transformers-7.0.0.tar.gz"):
        index.fetch_tests("7.0.0")


def test_what_is_a_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = run.Recorder()
    recorder.outcomes["ours"] = {"a": "passed", "b": "failed", "c": "skipped", "d": "failed", "e": "failed"}
    recorder.outcomes["upstream-gpt2"] = {"a": "failed", "b": "passed", "c": "passed", "d": "skipped", "e": "passed"}
    for name in recorder.outcomes:
        recorder.reasons[name] = {test: f"reason {test}" for test in "abcde"}
    monkeypatch.setattr(run, "EXPECTED", {"^ours: e$": "cannot be"})
    faults = run.report(recorder)
    assert [fault.split(": reason")[0] for fault in faults] == ["ours: b failed", "ours: c skipped"]
    shown = capsys.readouterr().out
    assert "| ours | 1 | 3 | 1 | 0 |" in shown
    assert "- ours: e failed: cannot be" in shown
    assert "| reason c | 1 | 0 |" in shown
