"""A run that is stopped by a signal and resumed is the run that nobody stopped, bit for bit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from elder.reporting.metrics_log import read_metrics
from tests.runs import SLICES, finish, run, start, write_config

pytestmark = pytest.mark.filterwarnings("ignore:.*solves fell short")

LAST = "--ckpt_path=last"
N = SLICES["train"]
AVERAGED = "--trainer.callbacks+=AveragedWeights"
SPENT = ("time", "cost/seconds", "cost/memory")


def tensors(tree: Any, place: str = "") -> dict[str, Tensor]:
    """All tensors and numbers of nested containers, by their place."""
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for name, branch in items for k, v in tensors(branch, f"{place}/{name}").items()}
    return {place: torch.as_tensor(tree)} if isinstance(tree, Tensor | float | int) else {}


def checkpoint(run_dir: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)


def best_score(state: dict[str, Any]) -> Tensor:
    (score,) = (v["best_model_score"] for k, v in state["callbacks"].items() if k.startswith("BestCheckpoint"))
    return score


def steps(run_dir: Path) -> list[dict[str, float]]:
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in SPENT} for line in lines]


def assert_same(whole: Path, resumed: Path) -> None:
    a, b = checkpoint(whole), checkpoint(resumed)
    averaged = {"current_weights"} & a.keys()
    for part in ("state_dict", "optimizer_states", "lr_schedulers", *averaged):
        x, y = tensors(a[part]), tensors(b[part])
        assert x
        assert x.keys() == y.keys()
        assert not [name for name in x if not torch.equal(x[name], y[name])]
    assert (a["epoch"], a["global_step"]) == (b["epoch"], b["global_step"])
    assert torch.equal(best_score(a), best_score(b))
    assert checkpoint(whole, "best")["global_step"] == checkpoint(resumed, "best")["global_step"]
    assert steps(whole) == steps(resumed)


def signal_at(hook: str, epoch: int, batch: int = 0, name: str = "SIGUSR1", rank: int = 0) -> list[str]:
    options = {"hook": hook, "epoch": epoch, "batch": batch, "name": name, "rank": rank}
    values = [f"--trainer.callbacks.{key}={value}" for key, value in options.items()]
    return ["--trainer.callbacks+=tests.training.callbacks.SignalAt", *values]


def stopped(config: Path, *options: str) -> None:
    with pytest.raises(SystemExit) as end:
        run("fit", config, *options)
    assert end.value.code == 75


CASES = {
    "within a step": ([], "before_optimizer_step", 1, 1, N + 2),
    "within validation": ([], "validation_batch_start", 1, 1, 2 * N),
    "end of validation": ([], "validation_end", 1, N - 1, 2 * N),
    "loader processes": (["--data.num_workers=2"], "train_batch_end", 1, 1, N + 2),
    "last step of an epoch without validation": (
        ["--trainer.check_val_every_n_epoch=2"], "train_batch_end", 0, N - 1, N),
    "before a validation within the epoch": (["--trainer.val_check_interval=2"], "train_batch_end", 1, 0, N + 1),
    "at it": (["--trainer.val_check_interval=2"], "train_batch_end", 1, 1, N + 2),
    "within it": (["--trainer.val_check_interval=2"], "validation_batch_end", 1, 0, N + 2),
    "after it": (["--trainer.val_check_interval=2"], "validation_end", 1, 1, N + 2),
    "within an accumulation": (["--trainer.accumulate_grad_batches=2"], "train_batch_end", 1, 0, N // 2 + 1),
    "part of the data": (["--trainer.limit_train_batches=3"], "train_batch_end", 1, 1, 3 + 2),
    "adapting tolerances": (
        ["--model.reconstruction.backward=Implicit", "--model.tolerance.target=0.1", "--model.tolerance.loosest=0.5"],
        "train_batch_end", 1, 1, N + 2),
    "a learning rate of its own for each step": (["--model.scheduler_interval=step"], "train_batch_end", 1, 1, N + 2),
    "averaged weights": ([AVERAGED], "train_batch_end", 1, 1, N + 2),
    "within a validation of averaged weights": ([AVERAGED], "validation_batch_end", 1, 0, 2 * N),
}  # fmt: skip


def tiny(folder: Path) -> Path:
    """Three epochs of four steps."""
    config = write_config(
        folder,
        trainer__max_epochs=3,
        data__init_args__batch_size=1,
        data__init_args__eval_batch_size=1,
        model__init_args__reconstruction__solver__init_args__tol=0.1,
        model__init_args__reconstruction__backward="JacobianFree",
    )
    return config


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run with these options that nobody stops."""
    config, done = tiny(tmp_path_factory.mktemp("undisturbed")), dict[str, Path]()

    def folder(*options: str) -> Path:
        name = " ".join(option for option in options if "workers" not in option)
        if name not in done:
            done[name] = config.parent / str(len(done))
            run("fit", config, *options, f"--run_dir={done[name]}")
        return done[name]

    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_resumes_as_if_nothing_had_happened(
    tmp_path: Path, undisturbed: Callable[..., Path], case: str
) -> None:
    options, hook, epoch, batch, step = CASES[case]
    config = tiny(tmp_path)
    stopped(config, *options, *signal_at(hook, epoch, batch))
    assert checkpoint(tmp_path / "run")["global_step"] == step
    run("fit", config, *options, LAST)
    assert_same(undisturbed(*options), tmp_path / "run")


def test_a_run_may_be_stopped_at_every_step(tmp_path: Path, undisturbed: Callable[..., Path]) -> None:
    config = tiny(tmp_path)
    for step in range(2 * N):
        stopped(config, LAST, *signal_at("train_batch_end", *divmod(step, N), name="SIGTERM"))
        assert checkpoint(tmp_path / "run")["global_step"] == step + 1
    run("fit", config, LAST)
    assert_same(undisturbed(), tmp_path / "run")


def test_two_processes_stop_at_the_same_step_whichever_is_signalled(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    two = ("--trainer.devices=2", "--trainer.strategy=ddp", "--data.num_workers=1")
    finish(start("fit", config, *two, f"--run_dir={tmp_path / 'whole'}"))  # not beside the other: ports are few
    process = start("fit", config, *two, *signal_at("train_batch_end", 1, 0, "SIGTERM", rank=1))
    output = finish(process, status=75)
    assert "go on from there with --ckpt_path last" in output
    assert checkpoint(tmp_path / "run")["global_step"] == 3
    finish(start("fit", config, *two, LAST))
    assert checkpoint(tmp_path / "whole")["global_step"] == 3 * N // 2
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_a_signal_to_all_processes_of_a_run_leaves_its_loaders_alone(
    tmp_path: Path, undisturbed: Callable[..., Path]
) -> None:
    config = tiny(tmp_path)
    for name in ("SIGUSR1", "SIGTERM"):
        process = start("fit", config, "--data.num_workers=2", LAST, "--trainer.max_epochs=300")
        _wait_for_step(tmp_path / "run", process)
        _signal_all(process, name)
        output = finish(process, status=75, timeout=60)
        assert "Traceback" not in output


def test_a_signal_before_the_first_step_ends_the_program_at_once(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    for delay in (0.0, 1.0, 2.0, 3.0):  # somewhere in the imports and the set-up
        process = start("fit", config)
        _wait_for_handlers(process)
        time.sleep(delay)
        process.send_signal(signal.SIGUSR1)
        output = finish(process, status=75, timeout=60)
        assert "Traceback" not in output
        assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("hook", ["train_start", "fit_start", "train_epoch_start", "train_batch_start"])
def test_before_the_first_step_there_is_nothing_to_save(tmp_path: Path, hook: str) -> None:
    config = tiny(tmp_path)
    stopped(config, *signal_at(hook, 0, -1 if hook != "train_batch_start" else 0))
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("command", ["test", "predict", "validate"])
def test_an_evaluation_ends_at_once(tmp_path: Path, command: str) -> None:
    config = tiny(tmp_path)
    hook = {"test": "test_start", "predict": "predict_batch_end", "validate": "validation_batch_end"}[command]
    options = ["--trainer.callbacks+=tests.training.callbacks.SignalAt", f"--trainer.callbacks.hook={hook}"]
    with pytest.raises(SystemExit) as end:
        run(command, config, *options, "--trainer.callbacks.batch=null")
    assert end.value.code == 75
    assert not (tmp_path / "run" / "results.csv").exists()


def test_handlers_are_those_of_before_again(tmp_path: Path) -> None:
    calls = []
    before = {name: signal.signal(name, lambda *_: calls.append(1)) for name in (signal.SIGUSR1, signal.SIGTERM)}
    try:
        stopped(tiny(tmp_path), *signal_at("train_batch_end", 0))
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert calls == [1, 1]
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _wait_for_handlers(process: subprocess.Popen[str]) -> None:
    """Until a process handles SIGUSR1."""
    status, deadline = Path(f"/proc/{process.pid}/status"), time.monotonic() + 60
    while not int(re.findall(r"SigCgt:\s*(\w+)", status.read_text())[0], 16) >> (signal.SIGUSR1 - 1) & 1:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _signal_all(process: subprocess.Popen[str], name: str) -> None:
    """As SLURM does: the process and all that it has started."""
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(children) >= 2
    for pid in [*map(int, children), process.pid]:
        os.kill(pid, getattr(signal, name))


def _wait_for_step(run_dir: Path, process: subprocess.Popen[str]) -> None:
    """Until a process has logged a step."""
    log, deadline = run_dir / "metrics.jsonl", time.monotonic() + 60
    size = log.stat().st_size if log.exists() else 0
    while not log.exists() or log.stat().st_size == size:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
