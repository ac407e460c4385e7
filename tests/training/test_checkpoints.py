"""A checkpoint is whole, whenever the process is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from pytorch_lightning.plugins import CheckpointIO
from pytorch_lightning.plugins.environments import SLURMEnvironment

from elder.cli import _plugins
from elder.training.checkpoints import WholeCheckpoints
from tests.runs import refuse, run, write_config

# The test process has no threads at work that a fork could cut short.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork"),
    pytest.mark.filterwarnings("ignore:The `srun` command is available"),  # where SLURM is installed
]


def _save_for_ever(path: Path) -> None:
    for value in range(1, 1_000_000):
        WholeCheckpoints().save_checkpoint({"state_dict": {"x": torch.full((500_000,), float(value))}}, path)


def test_a_kill_while_saving_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    torn = 0
    for attempt in range(12):
        process = multiprocessing.get_context("fork").Process(target=_save_for_ever, args=(path,))
        process.start()
        while not path.exists():
            time.sleep(0.001)
        time.sleep(0.03 + 0.004 * attempt)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        x = torch.load(path, weights_only=True)["state_dict"]["x"]
        assert len(x) == 500_000
        assert bool((x == x[0]).all())
        torn += (tmp_path / "checkpoints" / ".part").exists()
    assert torn, "no kill came in the midst of a save"
    assert {file.name for file in path.parent.iterdir()} <= {"last.ckpt", ".part"}


def test_what_a_kill_leaves_behind_does_not_disturb_a_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = write_config(tmp_path, trainer__limit_val_batches=0)
    with caplog.at_level("INFO"):
        run("fit", config, "--trainer.max_epochs=1")
    assert "no regularizer.safetensors was written: val/psnr was not measured" in caplog.text
    (tmp_path / "run" / "checkpoints" / ".part").write_bytes(b"torn")
    run("fit", config, "--ckpt_path=last")
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1


def test_lightning_requeues_nothing_under_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    (whole,) = _plugins(None)
    assert isinstance(whole, WholeCheckpoints)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "a")
    kinds = {type(plugin): plugin for plugin in _plugins([])}
    assert kinds.keys() == {WholeCheckpoints, SLURMEnvironment}
    assert kinds[SLURMEnvironment].auto_requeue is False
    own = SLURMEnvironment()
    assert [plugin for plugin in _plugins(own) if not isinstance(plugin, CheckpointIO)] == [own]


def test_what_lightning_left_when_it_requeued_is_not_resumed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "hpc_ckpt_1.ckpt").write_bytes(b"")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "a")
    assert "expected no hpc_ckpt_* file" in refuse(capsys, "fit", "--config", str(config))
