"""Fetches public data over HTTP: resumed where it broke off, and trusted only if its SHA-256 is the expected one.

python -m elder.datamodules.download bsds500 DEST
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

TRANSIENT = (408, 429, 500, 502, 503, 504)  # HTTP statuses worth another attempt
TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 16  # bytes


@dataclass(frozen=True)
class Archive:
    """A published tar archive.

    Args:
        url: Its address.
        sha256: Its checksum, 64 hexadecimal digits.
        root: The one folder at its top.
        images: Where the images lie in it.
    """

    url: str
    sha256: str
    root: str
    images: str


ARCHIVES = {
    # 70,763,455 bytes. Berkeley publishes no checksum: this one is what several independent projects record for
    # this address. It was not computed from a download of our own.
    "bsds500": Archive(
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz",
        "97e49d31764f3912f0c4122707d53062ac9e783ba0f095e447a4d53c1a41af8e",
        root="BSR",
        images="BSR/BSDS500/data/images",
    ),
}


def download(url: str, path: Path, sha256: str, attempts: int = 5, pause: float = 1.0) -> None:
    """Fetch url into path; path exists afterwards only with the right checksum.

    Bytes gather in `path` + ".part", which a later attempt or call continues (HTTP Range; a server without it starts
    again). A file already at `path` is checked, not fetched. One process at a time.

    Args:
        url: HTTP or HTTPS address.
        path: Destination; its folder is made.
        sha256: Expected checksum, hexadecimal.
        attempts: Connections to try before giving up on broken transfers and overloaded servers.
        pause: Seconds before the second attempt, doubled for each further one.

    Raises:
        OSError: If the server refuses, or all attempts break off; what has arrived is kept.
        ValueError: If the checksum is wrong; what has arrived is deleted.
    """
    if path.exists():
        _check(path, sha256, "delete it and run again")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    if not (part.exists() and _sha256(part) == sha256.lower()):  # else complete, but killed before the rename
        _fetch(url, part, attempts, pause)
    try:
        _check(part, sha256, f"it was deleted, run again; if that changes nothing, the file at {url} has changed")
    except ValueError:
        part.unlink()
        raise
    part.replace(path)


def unpack(archive: Path, folder: Path, root: str) -> None:
    """Unpack the tar archive's top folder `root` into `folder`, where it appears complete or not at all.

    Members that would land outside, devices and the like are refused (`tarfile`'s "data" filter). The archive's
    checksum is to be verified before: `tarfile` takes some damage for the archive's end.

    Raises:
        OSError: If the archive is found truncated or unsafe, or lacks `root`.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as scratch:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
            (Path(scratch) / root).replace(folder / root)
        except (tarfile.TarError, EOFError, FileNotFoundError) as error:
            raise OSError(f"{archive}: expected a sound archive of {root}/, found otherwise ({error})") from error


def main(arguments: list[str] | None = None) -> None:
    """Command line: fetch a data set into a folder and unpack it there."""
    parser = argparse.ArgumentParser(prog="python -m elder.datamodules.download", description=main.__doc__)
    parser.add_argument("name", choices=sorted(ARCHIVES), help="data set")
    parser.add_argument("folder", type=Path, metavar="DEST", help="folder to unpack into")
    chosen = parser.parse_args(arguments)
    archive, folder = ARCHIVES[chosen.name], chosen.folder
    if not (folder / archive.root).exists():
        try:
            file = folder / archive.url.rpartition("/")[2]
            download(archive.url, file, archive.sha256)
            unpack(file, folder, archive.root)
        except (OSError, ValueError) as error:
            sys.exit(f"error: {error}")
    Console().print(f"images: {folder / archive.images}", highlight=False, soft_wrap=True)


class _BrokenTransferError(Exception):
    """A transfer broke off; another attempt may continue it."""


def _fetch(url: str, part: Path, attempts: int, pause: float) -> None:
    columns = (TextColumn(part.stem), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for attempt in range(1, attempts + 1):
            try:
                return _transfer(url, part, progress)
            except _BrokenTransferError as error:
                if attempt == attempts:
                    kept = part.stat().st_size if part.exists() else 0
                    raise OSError(
                        f"{url}: expected the whole file within {attempts} attempts, got {kept} bytes ({error}); "
                        "run again to continue"
                    ) from error
            time.sleep(pause * 2 ** (attempt - 1))


def _transfer(url: str, part: Path, progress: Progress) -> None:
    """One connection: append to part what it lacks."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with _connection():
            response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            part.unlink()
            raise _BrokenTransferError("the partial file did not fit the server's and was deleted") from error
        if error.code in TRANSIENT:
            raise _BrokenTransferError(f"HTTP {error.code} {error.reason}") from error
        raise OSError(f"{url}: expected a file, got HTTP {error.code} {error.reason}; check the address") from error
    with response:
        if response.status != 206:  # the server sends the file from its start
            start = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise _BrokenTransferError(f"asked for bytes {start}-, got {response.headers.get('Content-Range')}")
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        bar = progress.add_task("", total=total, completed=start)
        with part.open("ab" if start else "wb") as file:
            while chunk := _receive(response):
                file.write(chunk)
                progress.advance(bar, len(chunk))
            if total is not None and file.tell() < total:  # `read` takes a closed connection for the end
                raise _BrokenTransferError(f"the connection closed after {file.tell()} of {total} bytes")


def _receive(response: http.client.HTTPResponse) -> bytes:
    with _connection():
        return response.read(CHUNK)


@contextmanager
def _connection() -> Iterator[None]:
    """Tell failures of the connection from those of the disk."""
    try:
        yield
    except urllib.error.HTTPError:  # an answer, not a failure
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenTransferError(str(error) or type(error).__name__) from error


def _check(path: Path, sha256: str, advice: str) -> None:
    if (found := _sha256(path)) != sha256.lower():
        raise ValueError(f"{path}: expected SHA-256 {sha256.lower()}, got {found}; {advice}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
