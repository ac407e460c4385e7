"""What every test stands on: one thread, no network, no tracker, and global settings left as they were found."""

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

# Tiny tensors gain nothing from threads. The environment is for the processes that tests start.
torch.set_num_threads(1)
os.environ.update(OMP_NUM_THREADS="1", WANDB_MODE="disabled", MPLBACKEND="agg")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run a file's tests in one process, whose fixtures they share; so those of the one cluster, and of the one GPU."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            group = "gpu" if item.get_closest_marker("gpu") else item.path.name
            group = "cluster" if "cluster" in getattr(item, "fixturenames", ()) else group
            item.add_marker(pytest.mark.xdist_group(group))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def global_settings() -> Iterator[None]:
    """Start from seed 0, whatever ran before; fail a test that leaves another default dtype or grad mode behind."""
    torch.manual_seed(0)
    yield
    found = torch.get_default_dtype(), torch.is_grad_enabled()
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()  # one run a process: an open one would be the next test's
    assert found == (torch.float32, True), f"the test changed the default dtype or the grad mode: {found}"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections that leave this machine."""
    connect = socket.socket.connect

    def local(self: socket.socket, address: tuple | str | bytes) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise ConnectionRefusedError(f"tests: expected no network, got a connection to {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Path of a file or folder of the optional real data, below $ELDER_TEST_DATA; skips the test where it is absent."""

    def path(relative_path: str) -> Path:
        root = os.environ.get("ELDER_TEST_DATA")
        if root is None:
            pytest.skip("needs real data: ELDER_TEST_DATA is not set")
        if not (found := Path(root) / relative_path).exists():
            pytest.skip(f"needs real data: ELDER_TEST_DATA has no {relative_path}")
        return found

    return path
