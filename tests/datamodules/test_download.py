"""Downloads from a server on this machine that can be told to misbehave."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from elder.datamodules import download as module
from elder.datamodules.download import ARCHIVES, Archive, download, main, unpack

CONTENT = bytes(range(256)) * 1024  # 256 KiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves one file; counts what it sends, and may break off, ignore Range or fail a number of times."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.ranges = True
        self.lengths = True
        self.offset = 0  # added to the start of every range: a server that answers another question
        self.breaks: list[int] = []  # bytes after which successive transfers break off
        self.statuses: list[int] = []  # of successive answers, before the file is sent
        self.requests: list[tuple[str | None, int]] = []  # (Range, bytes sent)
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, format: str, *arguments: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/data.bin"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        if self.statuses:
            self.requests.append((wanted, 0))
            return handler.send_error(self.statuses.pop(0))
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) + self.offset if wanted and self.ranges else None
        if start is not None and start >= len(self.content):
            self.requests.append((wanted, 0))
            return handler.send_error(416)
        body = self.content[start:]
        sent = body[: self.breaks.pop(0)] if self.breaks else body
        self.requests.append((wanted, len(sent)))  # before the client can be done with the answer
        handler.send_response(200 if start is None else 206)
        if start is not None:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.lengths:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(sent)
        return None


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(CONTENT)
    thread = threading.Thread(target=partial(server.http.serve_forever, poll_interval=0.01))
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "data.bin"


def partial_file(path: Path, content: bytes) -> Path:
    path.parent.mkdir()
    part = path.with_name("data.bin.part")
    part.write_bytes(content)
    return part


def fetch(server: Server, path: Path, sha256: str = SHA256) -> None:
    download(server.url, path, sha256, attempts=3, pause=0.0)


@pytest.mark.parametrize("lengths", [True, False])
def test_whole_file(server: Server, path: Path, lengths: bool) -> None:
    server.lengths = lengths
    fetch(server, path, SHA256.upper())
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["data.bin"]
    assert server.requests == [(None, len(CONTENT))]


def test_present_file_is_checked_and_not_fetched(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    fetch(server, path)
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match=rf"data\.bin: expected SHA-256 {SHA256}, got .{{64}}; delete it"):
        fetch(server, path)
    assert path.read_bytes() == b"other"
    assert server.requests == []


def test_resume_sends_only_the_rest(server: Server, path: Path) -> None:
    partial_file(path, CONTENT[:100_001])
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.requests == [("bytes=100001-", len(CONTENT) - 100_001)]


def test_complete_partial_file_needs_no_server(path: Path) -> None:
    partial_file(path, CONTENT)
    download("http://127.0.0.1:9/", path, SHA256, attempts=1)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("excess", [0, 10])
def test_partial_file_that_does_not_fit_is_replaced(server: Server, path: Path, excess: int) -> None:
    partial_file(path, bytes(len(CONTENT) + excess))
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert [sent for _, sent in server.requests] == [0, len(CONTENT)]


def test_server_without_range_restarts(server: Server, path: Path) -> None:
    server.ranges = False
    partial_file(path, b"x" * 1000)
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.requests == [("bytes=1000-", len(CONTENT))]


def test_server_with_another_range_is_not_believed(server: Server, path: Path) -> None:
    server.offset = 5
    part = partial_file(path, CONTENT[:1000])
    with pytest.raises(OSError, match="asked for bytes 1000-, got bytes 1005-"):
        fetch(server, path)
    assert part.read_bytes() == CONTENT[:1000]


def test_wrong_checksum_leaves_nothing(server: Server, path: Path) -> None:
    with pytest.raises(ValueError, match=f"expected SHA-256 {'0' * 64}, got {SHA256}; it was deleted, run again") as e:
        fetch(server, path, "0" * 64)
    assert server.url in str(e.value)
    assert list(path.parent.iterdir()) == []


def test_truncated_transfers_are_continued(server: Server, path: Path) -> None:
    server.breaks = [70_000, 50_000]
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.requests == [
        (None, 70_000),
        ("bytes=70000-", 50_000),
        ("bytes=120000-", len(CONTENT) - 120_000),
    ]


def test_attempts_are_bounded_and_nothing_is_lost(server: Server, path: Path) -> None:
    server.breaks = [1000, 1000, 1000]
    with pytest.raises(
        OSError, match=r"within 3 attempts, got 3000 bytes \(the connection closed after 3000 of 262144"
    ):
        fetch(server, path)
    assert not path.exists()
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.requests[-1] == ("bytes=3000-", len(CONTENT) - 3000)


def test_overloaded_server_is_asked_again(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    server.statuses = [503, 429]
    download(server.url, path, SHA256, attempts=3, pause=2.0)
    assert path.read_bytes() == CONTENT
    assert pauses == [2.0, 4.0]


def test_refusal_is_final(server: Server, path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(OSError, match=r"data\.bin: expected a file, got HTTP 404 Not Found; check the address"):
        fetch(server, path)
    assert len(server.requests) == 1
    assert list(path.parent.iterdir()) == []


def test_no_server(path: Path) -> None:
    with pytest.raises(OSError, match=r"within 2 attempts, got 0 bytes .*refused"):
        download("http://127.0.0.1:9/", path, SHA256, attempts=2, pause=0.0)


def test_failure_of_the_disk_is_not_taken_for_a_broken_connection(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.with_name("data.bin.part").symlink_to(path.parent / "missing" / "data.bin")
    with pytest.raises(FileNotFoundError):
        fetch(server, path)
    assert len(server.requests) == 1


def archive_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def serve(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Let the command line find an archive of the given content."""

    def offer(content: bytes) -> None:
        server.content = content
        url = server.url.replace("data.bin", "archive.tgz")
        monkeypatch.setitem(ARCHIVES, "bsds500", Archive(url, hashlib.sha256(content).hexdigest(), "BSR", "BSR/images"))

    return offer


def test_command_line(
    server: Server, serve: Callable[[bytes], None], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    serve(archive_of({"BSR/images/train/1.jpg": b"one", "BSR/images/val/2.jpg": b"two"}))
    for _ in range(2):  # the second call finds everything done
        main(["bsds500", str(tmp_path / "data")])
        assert capsys.readouterr().out == f"images: {tmp_path / 'data/BSR/images'}\n"
    assert (tmp_path / "data/BSR/images/val/2.jpg").read_bytes() == b"two"
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["BSR", "archive.tgz"]
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", ["../evil", "BSR/../../evil"])
def test_archive_cannot_write_elsewhere(serve: Callable[[bytes], None], tmp_path: Path, name: str) -> None:
    serve(archive_of({"BSR/images/1.jpg": b"one", name: b"evil"}))
    with pytest.raises(SystemExit, match=r"error: .*archive\.tgz: expected a sound archive of BSR/, found otherwise"):
        main(["bsds500", str(tmp_path / "a/b")])
    assert [p.name for p in (tmp_path / "a/b").iterdir()] == ["archive.tgz"]
    assert not list(tmp_path.rglob("evil"))


def test_truncated_archive_unpacks_not_at_all(tmp_path: Path) -> None:
    whole = archive_of({f"BSR/{i}.jpg": hashlib.sha512(bytes([i])).digest() * i for i in range(50)})
    file = tmp_path / "archive.tgz"
    for content in (whole[: len(whole) // 2], whole[:20], b"", b"no archive"):
        file.write_bytes(content)
        with pytest.raises(OSError, match="expected a sound archive of BSR/"):
            unpack(file, tmp_path, "BSR")
        assert [p.name for p in tmp_path.iterdir()] == ["archive.tgz"]
    file.write_bytes(archive_of({"OTHER/1.jpg": b"one"}))
    with pytest.raises(OSError, match="expected a sound archive of BSR/"):
        unpack(file, tmp_path, "BSR")


def test_published_checksums_are_well_formed() -> None:
    for archive in ARCHIVES.values():
        assert archive.url.startswith("https://")
        assert len(bytes.fromhex(archive.sha256)) == 32
        assert archive.images.startswith(archive.root)
