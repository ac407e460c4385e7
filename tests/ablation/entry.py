"""A program with the contract of `main.py fit|tune|test`, which needs nothing that takes time to load.

A fit makes `model.steps` steps, `model.per_epoch` in each epoch, of `model.seconds` each; its result is a chain of
digests, so that a step left out, repeated or made twice at once shows. Run as: entry.py COMMAND --config FILE [--config
tuned.yaml] --run_dir FOLDER [--ckpt_path last|FILE].
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import signal
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

stopped: list[int] = []


def main() -> int:
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda got, _: stopped.append(got))
    import yaml

    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("--config", action="append")
    parser.add_argument("--run_dir", type=Path)
    parser.add_argument("--ckpt_path")
    options = parser.parse_args()
    config = yaml.safe_load(Path(options.config[0]).read_text())
    model, folder = config["model"]["init_args"], options.run_dir
    lock = (folder / f"lock-{os.environ.get('SLURM_PROCID', 0)}").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        (folder / "raced").touch()
    with (folder / "began.txt").open("a") as file:
        file.write(f"{options.command} {os.getpid()}\n")
    settings = {"batch_size": config["data"]["batch_size"], **config["trainer"]}
    settings |= {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "WANDB_MODE", "CUDA_VISIBLE_DEVICES")}
    (folder / f"settings-{os.environ.get('SLURM_PROCID', 0)}.json").write_text(json.dumps(settings))
    if options.command == model.get("breaks_in", "fit"):
        spoil(model.get("breaks"), folder)
    if options.command == "fit":
        return fit(model, folder, config)
    if options.command == "tune":
        (folder / "tuned.yaml").write_text(json.dumps({"pretrained": options.ckpt_path}))
        return 75 if stopped else 0
    tuned = yaml.safe_load(Path(options.config[1]).read_text()) if options.config[1:] else {}
    return test(folder, Path(options.ckpt_path or tuned.get("pretrained") or ""))


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def spoil(breaks: str | None, folder: Path) -> None:
    """Fail as the configuration says."""
    message = {
        "configuration": "error: model.stepps: Option 'stepps' is not accepted by Ridge",
        "divergence": "error: FloatingPointError: LBFGS: iterate 12 is not finite",
        "memory": "error: OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB",
        "crash": "error: KeyError: 'x'",
    }.get(breaks or "")
    if message:
        say(f"{message}\nFor the traceback: ELDER_TRACEBACK=1")
        raise SystemExit(2 if breaks == "configuration" else 1)
    if breaks == "once" and not (folder / "broken").exists():
        (folder / "broken").touch()
        raise SystemExit(1)
    if breaks == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if breaks == "deaf":
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        time.sleep(60)
    if breaks == "full":
        with (folder / "filling").open("wb") as file:
            try:
                for _ in range(1000):
                    file.write(bytes(1 << 16))
                    file.flush()
            except OSError as error:
                say(f"error: {error}")
                raise SystemExit(1) from None


def fit(model: dict[str, Any], folder: Path, config: dict[str, Any]) -> int:
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    step, chain = load(checkpoints / "last.ckpt")
    start = Path(model["start"]).read_text() if "start" in model else None
    chain = chain or hashlib.sha256(f"{config['seed_everything']} {start}".encode()).hexdigest()
    say(f"begins at step {step}")
    while step < model["steps"]:
        time.sleep(model["seconds"])
        step, chain = step + 1, hashlib.sha256(f"{chain} {step + 1}".encode()).hexdigest()
        if step % model["per_epoch"] == 0:
            save(checkpoints / "last.ckpt", step, chain)
            line = {"step": step, "epoch": step // model["per_epoch"] - 1, "time": 0.0, "val/psnr": 30 + step / 100}
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        if stopped:
            save(checkpoints / "last.ckpt", step, chain)
            say(f"stopped at step {step}; go on with --ckpt_path last")
            return 75
    save(checkpoints / "best.ckpt", step, chain)
    (folder / "regularizer.safetensors").write_text(chain)
    return 0


def test(folder: Path, checkpoint: Path) -> int:
    _, chain = load(checkpoint)
    row = f"learned,a,{int(chain[:4], 16)},0.9,0.001,10,0.1"
    (folder / "results.csv").write_text(f"method,image,psnr,ssim,residual,n_gradients,seconds\n{row}\n")
    return 75 if stopped else 0


def load(path: Path) -> tuple[int, str]:
    if not path.exists():
        return 0, ""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("state"))


def save(path: Path, step: int, chain: str) -> None:
    if os.environ.get("SLURM_PROCID", "0") != "0":  # the first process saves; at the end the others wait for it
        while path.name == "best.ckpt" and not path.exists():
            time.sleep(0.01)
        return
    temporary = path.with_suffix(".part")
    with zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr("state", json.dumps([step, chain]))
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
