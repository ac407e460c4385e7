"""A program with the contract of `main.py fit|test` whose validation PSNR follows from the strength.

It is best at 0.1 and rises a little with every epoch. The environment has the seconds of an epoch (SECONDS).
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
import zipfile
from pathlib import Path

import yaml

stopped: list[int] = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda got, _: stopped.append(got))
command, options = sys.argv[1], dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
config, folder = yaml.safe_load(Path(options["--config"]).read_text()), Path(options["--run_dir"])
strength = float(config["model"]["init_args"]["reconstruction"].get("strength", 0.1))
last = folder / "checkpoints" / "last.ckpt"
last.parent.mkdir(exist_ok=True)
with (folder / "began.txt").open("a") as file:
    file.write(f"{command}\n")
if strength < 2e-3:
    sys.stderr.write("error: FloatingPointError: LBFGS: iterate 3 is not finite\n")
    raise SystemExit(1)
if command == "fit":
    epoch = 0
    if last.exists():
        with zipfile.ZipFile(last) as archive:
            epoch = int(archive.read("state"))
    while epoch < config["trainer"]["max_epochs"] and not stopped:
        time.sleep(float(os.environ.get("SECONDS", "0.02")))
        psnr = 30 - 3 * (math.log10(strength) + 1) ** 2 + 0.1 * epoch
        epoch += 1
        if epoch % config["trainer"].get("check_val_every_n_epoch", 1) == 0:
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": epoch, "epoch": epoch - 1, "time": 0.0, "val/psnr": psnr}) + "\n")
        with zipfile.ZipFile(last, "w") as archive:
            archive.writestr("state", str(epoch))
    if epoch < config["trainer"]["max_epochs"]:
        raise SystemExit(75)
    (folder / "regularizer.safetensors").write_text("weights")
    last.with_name("best.ckpt").write_bytes(last.read_bytes())
else:
    (folder / "results.csv").write_text(f"method,image,psnr\nlearned,a,{99 - strength}\n")
