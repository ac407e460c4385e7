"""Training for real: on two processes, killed and resumed, and on a single image."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from elder.datamodules.base import KeySampler, collate, generator
from elder.datamodules.fastmri import FastMRI
from elder.models.penalties import jacobian_norm
from elder.models.reconstruction import Reconstruction
from elder.models.reconstruction_module import ReconstructionModule
from elder.models.regularizers import Ridge
from elder.operators import CartesianMRI, Gaussian, Identity, InverseProblem, RandomMask
from elder.reporting.metrics_log import read_metrics
from elder.reporting.tables import read_results
from elder.solvers import LBFGS
from tests.runs import SLICES, contents, finish, run, start, write_config

# The test process has no threads at work that a fork could cut short.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")

TWO = ("--trainer.devices=2", "--trainer.strategy=ddp_fork")


def checkpoint(run_dir: Path) -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


def tensors(tree: Any, place: str = "") -> dict[str, Tensor]:
    """All tensors and numbers of nested containers, by their place."""
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for name, branch in items for k, v in tensors(branch, f"{place}/{name}").items()}
    return {place: torch.as_tensor(tree)} if isinstance(tree, Tensor | float | int) else {}


def steps(run_dir: Path) -> list[dict[str, float]]:
    """The lines that say what was learned; not when, or at what cost."""
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if "cost/seconds" not in line]
    return [{k: v for k, v in line.items() if k != "time"} for line in lines]


# Two processes with batches of b are one process with batches of 2b.


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    solved = {
        "class_path": "LBFGS",
        "init_args": {"max_steps": 5000, "tol": 1e-9},
    }  # else rounding decides where it ends
    adjoint = {"class_path": "MINRES", "init_args": {"max_steps": 1000, "tol": 1e-9}}
    config = write_config(
        tmp_path,
        trainer__precision="64-true",
        trainer__max_steps=3,
        model__init_args__training_tol=1e-9,
        model__init_args__reconstruction__solver=solved,
        model__init_args__reconstruction__backward__init_args__solver=adjoint,
    )
    run("fit", config)
    two = ("--data.batch_size=1", "--trainer.devices=2", "--trainer.strategy=ddp", f"--run_dir={tmp_path / 'two'}")
    finish(start("fit", config, *two))  # launches a second process with the same command line
    one, both = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "two")
    assert one["global_step"] == both["global_step"] == 3
    assert one["state_dict"].keys() == both["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(both["state_dict"][name], value, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: n + m)
    for a, b in zip(steps(tmp_path / "run"), steps(tmp_path / "two"), strict=True):
        assert (a["step"], a["epoch"]) == (b["step"], b["epoch"])
        assert a.keys() == b.keys()
        assert b.get("train/strength", 0) == pytest.approx(a.get("train/strength", 0), rel=1e-6)
        assert b.get("val/psnr", 0) == pytest.approx(a.get("val/psnr", 0), abs=1e-5)


def test_training_has_a_tolerance_of_its_own(tmp_path: Path) -> None:
    config = write_config(tmp_path, trainer__max_epochs=1, model__init_args__training_tol=0.1)
    precise = "--model.reconstruction.solver.tol=1e-4", "--model.reconstruction.solver.max_steps=500"
    run("fit", config, *precise, "--model.reconstruction.backward.solver.tol=0.3")
    found = steps(tmp_path / "run")
    residuals = [line["forward/residual"] for line in found if "forward/residual" in line]
    assert residuals and all(1e-3 < residual <= 0.1 for residual in residuals)
    assert [line["val/residual"] for line in found if "val/residual" in line][-1] <= 1e-4


def test_two_processes_test_and_reconstruct_what_one_does(tmp_path: Path) -> None:
    assert SLICES["test"] % 2 == 1
    config = write_config(tmp_path, trainer__precision="64-true", trainer__max_steps=1)
    run("fit", config)
    last = f"--ckpt_path={tmp_path / 'run/checkpoints/last.ckpt'}"
    for command in ("test", "predict"):
        run(command, config, last)
        run(command, config, last, *TWO, f"--run_dir={tmp_path / 'two'}")
    one, both = (read_results(tmp_path / folder / "results.csv") for folder in ("run", "two"))
    images = [f"test.h5/{i}" for i in range(SLICES["test"])]
    assert [(row.method, row.image) for row in one] == [
        (method, image) for method in ("zero-filled", "total variation", "learned") for image in images
    ]
    for a, b in zip(one, both, strict=True):
        assert (a.method, a.image, a.n_gradients) == (b.method, b.image, b.n_gradients)
        assert (b.psnr, b.ssim) == pytest.approx((a.psnr, a.ssim), abs=1e-6)
    tuned = [json.loads((tmp_path / folder / "tuned.json").read_text()) for folder in ("run", "two")]
    assert tuned[0].keys() == {"total variation"}
    assert tuned[0]["total variation"] == pytest.approx(tuned[1]["total variation"], rel=1e-9)
    one, both = (contents(tmp_path / folder / "predictions" / "png") for folder in ("run", "two"))
    assert one == both
    assert len(one) == SLICES["test"]


@pytest.mark.filterwarnings("ignore:.*solves fell short")
def test_more_processes_than_images(tmp_path: Path) -> None:
    """All of them take part, and each image is counted once."""
    assert SLICES["val"] < 4 and SLICES["test"] < 4
    # as many plain steps for every image: line searches amplify the rounding of other batches
    steady = {"class_path": "Picard", "init_args": {"max_steps": 50, "tol": 0.0, "iteration": "GradientDescent"}}
    config = write_config(
        tmp_path,
        trainer__precision="64-true",
        trainer__max_steps=1,
        model__init_args__reconstruction__solver=steady,
    )
    four = ("--trainer.devices=4", "--trainer.strategy=ddp_fork", f"--run_dir={tmp_path / 'four'}")
    run("fit", config, "--data.batch_size=1", *four)
    last = f"--ckpt_path={tmp_path / 'four/checkpoints/last.ckpt'}"
    for command in ("validate", "test", "predict"):
        run(command, config, last)
        run(command, config, last, *four)
    for name in ("psnr", "ssim", "residual", "gradients"):
        key = f"val/{name}"
        one, all_four = ([line[key] for line in steps(tmp_path / run) if key in line][-1] for run in ("run", "four"))
        assert one == pytest.approx(all_four, rel=1e-6), name
    one, all_four = (read_results(tmp_path / folder / "results.csv") for folder in ("run", "four"))
    assert len(one) == len(all_four) == 3 * SLICES["test"]
    for a, b in zip(one, all_four, strict=True):
        assert (a.method, a.image) == (b.method, b.image) and b.psnr == pytest.approx(a.psnr, abs=1e-6)
    one, all_four = (contents(tmp_path / folder / "predictions" / "png") for folder in ("run", "four"))
    assert one == all_four and len(one) == SLICES["test"]


# A killed run, resumed, is the run that nobody killed.


@pytest.mark.parametrize(("num_workers", "every"), [(2, 1), (0, 3)], ids=["loaders", "rarely validated"])
def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path: Path, num_workers: int, every: int) -> None:
    config = write_config(
        tmp_path, data__init_args__batch_size=1, trainer__max_epochs=3, trainer__check_val_every_n_epoch=every
    )
    n = SLICES["train"]
    run("fit", config, f"--run_dir={tmp_path / 'whole'}")

    loaders = f"--data.num_workers={num_workers}"
    process = multiprocessing.get_context("fork").Process(target=run, args=("fit", config, loaders))
    process.start()
    log, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
    while not (log.exists() and f'"step": {n}, "epoch": 1' in log.read_text()):  # the first step of the second epoch
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert n <= steps(tmp_path / "run")[-1]["step"] < 2 * n - 1
    assert checkpoint(tmp_path / "run")["global_step"] == n  # not an epoch is lost

    with log.open("a") as file:
        file.write('{"step": 5, "tr')  # as a kill in the middle of a line leaves it
    run("fit", config, loaders, "--ckpt_path=last")
    whole, resumed = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "run")
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        a, b = tensors(whole[part]), tensors(resumed[part])
        assert a.keys() == b.keys()
        assert a
        for name in a:
            assert torch.equal(a[name], b[name]), name
    assert (whole["epoch"], whole["global_step"]) == (resumed["epoch"], resumed["global_step"]) == (2, 3 * n)
    assert steps(tmp_path / "run") == steps(tmp_path / "whole")
    assert [line["step"] for line in steps(tmp_path / "run") if "train/loss" in line] == list(range(3 * n))
    torn = [line for line in log.read_text().splitlines() if not _is_json(line)]
    assert torn == ['{"step": 5, "tr']
    best = [torch.load(tmp_path / d / "checkpoints" / "best.ckpt", weights_only=True) for d in ("whole", "run")]
    assert best[0]["global_step"] == best[1]["global_step"]


def test_the_last_epoch_is_kept_though_it_is_no_better(tmp_path: Path) -> None:
    run("fit", write_config(tmp_path), "--model.optimizer.lr=0")
    first, second = (line["val/psnr"] for line in steps(tmp_path / "run") if "val/psnr" in line)
    assert first == second
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert (best["epoch"], checkpoint(tmp_path / "run")["epoch"]) == (0, 1)


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


# A step does what it says.


def test_one_image_is_learned_by_heart(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        data__init_args__sample_rate=1 / SLICES["train"],
        data__init_args__batch_size=1,
        trainer__max_epochs=20,
        trainer__limit_val_batches=0,
        model__init_args__reconstruction__strength=3.0,
        model__init_args__optimizer__init_args__lr=0.05,
        model__init_args__scheduler=None,
    )
    run("fit", config)
    values = [line["train/psnr"] for line in steps(tmp_path / "run")]
    assert len(values) == 20
    assert min(values[-3:]) > values[0] + 3


def test_the_logged_loss_is_the_mean_squared_error(tmp_path: Path) -> None:
    solver = {"class_path": "LBFGS", "init_args": {"max_steps": 500, "tol": 1e-5}}  # rounding may bend its path
    config = write_config(
        tmp_path,
        trainer__limit_train_batches=0.5,  # one of two; an int is read as a float where a Union has been cached so
        trainer__limit_val_batches=0,
        model__init_args__reconstruction__solver=solver,
    )
    run("fit", config, "--trainer.max_epochs=1")
    state = checkpoint(tmp_path / "run")["state_dict"]
    run("fit", config, "--ckpt_path=last")  # the second epoch
    logged = steps(tmp_path / "run")[1]

    acquisition = CartesianMRI(RandomMask([0.25], [2]), Gaussian(0.01))
    data = FastMRI(acquisition, tmp_path / "data", image_size=None, real_images=True)
    data.setup("fit")
    sampler = KeySampler(data.train_data, seed=0, n_replicas=1, rank=0)
    sampler.set_epoch(1)
    items = collate([data.train_data[key] for key in list(sampler)[:2]])
    problem = acquisition(items.scene, [generator(0, key) for key in items.key])  # type: ignore[union-attr]
    module = ReconstructionModule(Reconstruction(Ridge(widths=[4], kernel_size=3), LBFGS(max_steps=500, tol=1e-5)))
    module.load_state_dict(state)
    with torch.no_grad():
        solution = module(problem)
    error = (solution.x - problem.x).square().flatten(1).mean(1)  # the images are real, with values up to 1
    assert logged["train/loss"] == pytest.approx(error.mean().item(), rel=1e-4)
    assert logged["train/psnr"] == pytest.approx(-10 * error.log10().mean().item(), rel=1e-4)
    assert logged["train/strength"] == pytest.approx(state["reconstruction.log_strength"].exp().item())
    assert logged["forward/residual"] == pytest.approx(solution.residual.max().item(), rel=1e-2)
    assert logged["forward/gradients"] == solution.n_gradients.mean() + 1  # one more for the backward pass
    assert logged["forward/unconverged"] == logged["backward/unconverged"] == 0


@pytest.mark.parametrize(("forward", "backward"), [(1, 200), (200, 2)])
def test_solves_that_fall_short_are_counted_and_warned_about(tmp_path: Path, forward: int, backward: int) -> None:
    config = write_config(tmp_path, trainer__max_epochs=1, trainer__limit_val_batches=0)
    short = [f"--model.reconstruction.solver.max_steps={forward}"]
    short += [f"--model.reconstruction.backward.solver.max_steps={backward}"]
    with pytest.warns(UserWarning, match=r"epoch 0: \d+ (for|back)ward solves fell short of their tolerance") as warned:
        run("fit", config, *short)
    lines = steps(tmp_path / "run")
    counts = {place: [line[f"{place}/unconverged"] for line in lines] for place in ("forward", "backward")}
    assert counts["forward"] == ([2, 2] if forward == 1 else [0, 0])
    if backward == 2:
        assert counts["backward"] == [2, 2]
    for line in lines:
        assert (line["forward/residual"] > 1e-3) == (line["forward/unconverged"] > 0)
        assert (line["backward/residual"] > 1e-2) == (line["backward/unconverged"] > 0)
    for place, values in counts.items():
        told = [w for w in warned if f"epoch 0: {sum(values):.0f} {place} solves fell short" in str(w.message)]
        assert bool(told) == (sum(values) > 0)


@pytest.mark.filterwarnings("ignore:.*solves fell short")
def test_negative_curvature_is_counted_and_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A strong nonconvex regularizer, and a solve that ends far from the minimum."""
    config = write_config(tmp_path, trainer__max_epochs=1, trainer__limit_val_batches=0)
    options = ["--model.reconstruction.strength=30", "--model.reconstruction.solver.max_steps=1"]
    options += ["--model.reconstruction.backward=Implicit", "--model.reconstruction.backward.tol=1e-2"]
    with caplog.at_level("INFO", "lightning_utilities.core.rank_zero"):
        run("fit", config, *options)
    total = sum(line["backward/indefinite"] for line in steps(tmp_path / "run"))
    assert total > 0 and f"epoch 0: {total:.0f} backward solves met negative curvature" in caplog.text


def test_a_warm_start_saves_gradients_from_the_second_epoch_on(tmp_path: Path) -> None:
    config = write_config(tmp_path, trainer__max_epochs=3, trainer__limit_val_batches=0)
    used = {}
    for warm in ("true", "false"):
        run("fit", config, f"--model.warm_start={warm}", f"--run_dir={tmp_path / warm}")
        used[warm] = [line["forward/gradients"] for line in steps(tmp_path / warm)]
    n = len(used["true"]) // 3
    assert used["true"][:n] == used["false"][:n]
    assert sum(used["true"][n:]) < sum(used["false"][n:])


def test_tolerances_adapt_within_their_bounds_and_are_part_of_the_checkpoint(tmp_path: Path) -> None:
    config = write_config(tmp_path, trainer__limit_val_batches=0)
    adaptive = [
        "--model.reconstruction.backward.solver.max_steps=400",
        "--model.tolerance.target=0.01",
        "--model.tolerance.loosest=0.3",
    ]
    run("fit", config, *adaptive, "--trainer.max_epochs=3")
    lines = steps(tmp_path / "run")
    for place, tightest in (("forward", 1e-3), ("backward", 1e-2)):
        values = [line[f"{place}/tolerance"] for line in lines]
        assert values[0] == pytest.approx(0.3)
        assert all(tightest * (1 - 1e-6) <= value <= 0.3 * (1 + 1e-6) for value in values)
        assert all(line[f"{place}/residual"] <= line[f"{place}/tolerance"] * (1 + 1e-4) for line in lines)
    assert min(lines[-1]["forward/tolerance"], lines[-1]["backward/tolerance"]) < 0.2
    errors = [line["backward/hypergradient_error"] for line in lines]
    assert errors[-1] < errors[0] / 3
    kept = checkpoint(tmp_path / "run")["state_dict"]["tolerances"]
    run("fit", config, *adaptive, "--trainer.max_epochs=4", "--ckpt_path=last")
    assert steps(tmp_path / "run")[len(lines)]["forward/tolerance"] == pytest.approx(kept[0].item())


def test_a_penalty_is_added_in_the_steps_it_is_due_and_counted(tmp_path: Path) -> None:
    config = write_config(tmp_path, trainer__max_epochs=2, trainer__limit_val_batches=0)
    norms, costs = {}, []
    plain = write_config(tmp_path, trainer__max_epochs=2, trainer__limit_val_batches=0)
    run("fit", plain, f"--run_dir={tmp_path / 'plain'}")
    for weight in (0, 10):
        options = [f"--model.penalty.weight={weight}", "--model.penalty.every=3", f"--run_dir={tmp_path / str(weight)}"]
        run("fit", config, *options)
        lines = steps(tmp_path / str(weight))
        added = [line.get("train/penalty") for line in lines if "train/loss" in line]
        assert added[0] == added[1] and added[2] is None and added[3] is not None  # Lightning repeats it in an epoch
        costs.append(_gradients(tmp_path / str(weight)))
        state = checkpoint(tmp_path / str(weight))["state_dict"]
        R = Ridge(widths=[4], kernel_size=3)
        reconstruction = Reconstruction(R, LBFGS())
        reconstruction.load_state_dict({k.removeprefix("reconstruction."): v for k, v in state.items()})
        x = torch.zeros(1, 1, 16, 16)
        norms[weight] = jacobian_norm(reconstruction.objective(InverseProblem(Identity(), x)), x, 50).item()
    assert norms[10] < 0.9 * norms[0]
    assert costs[0] == _gradients(tmp_path / "plain") + 2 * 2 * 22  # two steps of two samples


def _gradients(run_dir: Path) -> float:
    return sum(line.get("cost/gradients", 0) for line in read_metrics(run_dir / "metrics.jsonl"))


@pytest.mark.filterwarnings("ignore:.*solves fell short")
def test_a_run_learns_by_any_metric(tmp_path: Path) -> None:
    metric = {"class_path": "torchmetrics.MeanAbsoluteError"}
    loss = {"class_path": "elder.models.losses.MetricLoss", "init_args": {"metric": metric}}
    potential = "elder.models.regularizers.potentials.Convex"  # one minimum, whatever the rounding
    prior = {"class_path": "Ridge", "init_args": {"widths": [4], "kernel_size": 3, "potential": potential}}
    changes = {"model__init_args__loss": loss, "model__init_args__reconstruction__prior": prior}
    run("fit", write_config(tmp_path, trainer__max_epochs=12, **changes))
    lines = [line["train/loss"] for line in steps(tmp_path / "run") if "train/loss" in line]
    assert sum(lines[-6:]) < sum(lines[:6])


@pytest.mark.filterwarnings("ignore:.*solves fell short")
@pytest.mark.parametrize(
    ("interval", "gamma", "step"),
    [("epoch", 3e3, 3), ("step", 20, 4), ("step", 3e3, 2)],  # of the second epoch the first or last step; of the first
)
def test_a_strength_that_runs_away_ends_the_run_and_leaves_the_checkpoint(
    interval: str, gamma: float, step: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of before, even where an epoch would have ended with it."""
    config = write_config(
        tmp_path,
        trainer__max_epochs=3,
        model__init_args__optimizer={"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-9}},
        model__init_args__scalar_rate=1e7,
        model__init_args__scheduler__init_args__gamma=gamma,
        model__init_args__scheduler_interval=interval,
    )
    with pytest.raises(SystemExit):
        run("fit", config)
    told = capsys.readouterr().err.replace("\n", " ")
    assert re.search(rf"error: .*the strength diverged, from 0\.1 to \S+ by step {step}; fix it", told)
    if step < 3:
        assert "no checkpoint had been written before" in told and not list(tmp_path.rglob("*.ckpt"))
        return
    for name in ("best.ckpt", "last.ckpt"):
        assert f"{tmp_path / 'run' / 'checkpoints' / name}" in told
        kept = torch.load(tmp_path / "run" / "checkpoints" / name, weights_only=True)
        assert kept["global_step"] == 2 and abs(float(kept["state_dict"]["reconstruction.log_strength"])) < 3


def test_a_lowered_network_is_chosen_in_the_configuration(tmp_path: Path) -> None:
    config = write_config(tmp_path, trainer__max_epochs=1, trainer__limit_val_batches=0)
    run("fit", config, "--model.reconstruction.evaluation.dtype=bfloat16")
    assert all(line["forward/unconverged"] == 0 for line in steps(tmp_path / "run"))


def test_a_run_that_was_moved_keeps_its_best_checkpoint(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    run("fit", config)
    shutil.copytree(tmp_path / "run", tmp_path / "moved")
    last, best = (tmp_path / "moved" / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    checkpoint = torch.load(last, weights_only=True)
    (state,) = (value for key, value in checkpoint["callbacks"].items() if key.startswith("BestCheckpoint"))
    state["best_model_score"] = torch.tensor(99.0)  # nothing that follows is better
    torch.save(checkpoint, last)
    before = best.read_bytes()
    run("fit", config, f"--run_dir={tmp_path / 'moved'}", "--ckpt_path=last", "--trainer.max_epochs=3")
    assert torch.load(last, weights_only=True)["epoch"] == 2
    assert best.read_bytes() == before
