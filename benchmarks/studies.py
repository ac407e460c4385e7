"""`python -m benchmarks.studies --jobs 16 --minutes 9`: the studies of docs/results.md, with their small models.

With `--quick false` those of the literature's size, which take days of a GPU: DRUNets, and ridges of 13,000 parameters.

Runs of all studies side by side, on one GPU or on the cores of a machine: first the denoisers, each of which enters
the zoo when it is done, then what begins from them, and enters it in its turn. Whatever is done or was begun is kept in
runs/, so that the same command goes on; what was restored from an archive, which has no weights, begins anew. Small
models leave a GPU idle between their kernels: let processes share it (`nvidia-cuda-mps-control -d`, where there is
one), and give each a core. Models enter the zoo one at a time, by `flock` of util-linux.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import auto_cli
from rich.console import Console

from elder.ablation.planning.plan import make_plan
from elder.ablation.planning.study import read_study
from elder.ablation.running.folder import State
from elder.ablation.running.selection import names
from elder.ablation.workplace import RUNS, lines_of

CONSOLE = Console(highlight=False)
FOLDER = Path("configs/ablations")
DENOISERS = {"mri": "magnitude MRI", "gray": "gray photographs", "color": "color photographs"}
FAMILIES = {  # small and full size in the zoo, and the title of either
    "gradient step": ("residual_dncnn_small", "residual_drunet", "Gradient step over a {}"),
    "RED potential": ("red_dncnn_small", "red_drunet", "RED potential over a {}"),
    "scalar potential": ("scalar_dncnn_small", "scalar_drunet", "Scalar potential of a {}"),
    "implicit": ("implicit_dncnn_small", "implicit_drunet", "Field of a {}"),
    "weakly convex ridge": ("wcrr_small", "wcrr_large", "Weakly convex ridge"),
    "convex ridge": ("crr_small", "crr_large", "Convex ridge"),
    "input-convex network": ("icnn_small", "icnn_large", "Input-convex network"),
    "total deep variation": ("tdv_small", "tdv_large", "Total deep variation"),
}
TRAINED = {  # by study, and by scale where it has that axis: what a family trained at its equilibrium is called
    ("compressed_sensing_mri", ""): ("mri_{}", "compressed-sensing MRI at all five masks"),
    ("bsd68", ""): ("gray_{}", "denoising of gray photographs by a minimum"),
    ("inpainting", ""): ("color_{}_inpainting", "inpainting of color photographs"),
    ("deblurring", ""): ("color_{}_deblurring", "deblurring of color photographs"),
    ("super_resolution", "×2"): ("color_{}_super_resolution_2", "super-resolution ×2"),
    ("super_resolution", "×3"): ("color_{}_super_resolution_3", "super-resolution ×3"),
}
STUDIES = (
    *(f"denoisers_{kind}" for kind in DENOISERS),
    *dict.fromkeys(study for study, _ in TRAINED),
    "masks",
    "cbsd68",
)


@dataclass
class Job:
    """A run of a study, and the model of the zoo that it becomes.

    Args:
        name: Study and variant.
        commands: One after the other.
        needs: A model of the zoo, or None.
        log: What the commands print.
    """

    name: str
    commands: list[list[str]]
    needs: str | None
    log: Path
    process: subprocess.Popen[bytes] | None = None
    begun: float = 0.0

    @property
    def ready(self) -> bool:
        return self.needs is None or Path("weights", self.needs).is_dir()

    def next_command(self) -> bool:
        """Start it; False if there is none."""
        if not self.commands:
            return False
        self.begun = self.begun or time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.commands.pop(0), stdout=log, stderr=log, start_new_session=True)
        return True


def main(
    jobs: int = 2, minutes: float | None = None, studies: tuple[str, ...] = STUDIES, only: str = "", quick: bool = True
) -> None:
    """Run what is not done of the studies.

    Args:
        jobs: Runs at a time.
        minutes: After which everything is stopped, to go on another time; null: until all is done.
        studies: Names of files in configs/ablations, in the order in which they are run.
        only: A part of the study's and the variant's name.
        quick: With small models; false: with those of full size.
    """
    end = time.monotonic() + (float("inf") if minutes is None else 60 * minutes)
    os.environ |= {"OMP_NUM_THREADS": "1"} | ({} if "WANDB_MODE" in os.environ else {"WANDB_MODE": "disabled"})
    waiting = [job for job in _all_jobs(studies, quick) if only in job.name]
    running: list[Job] = []
    _say(f"{len(waiting)} runs")
    try:
        while time.monotonic() < end and (running or any(job.ready for job in waiting)):
            for job in [job for job in running if job.process is not None and job.process.poll() is not None]:
                status = job.process.returncode if job.process else 0
                if status == 0 and job.next_command():
                    continue
                running.remove(job)
                _say(f"{job.name}: {'done' if status == 0 else f'failed, see {job.log}'}, {_since(job.begun)}")
            for job in [job for job in waiting if job.ready][: jobs - len(running)]:
                waiting.remove(job)
                running.append(job)
                job.next_command()
            time.sleep(0.2)
    finally:
        _stop(running)
    _say(f"{len(running)} stopped, {len(waiting)} not begun" if running or waiting else "all done")


def _all_jobs(studies: tuple[str, ...], quick: bool) -> list[Job]:
    """Each run once, also where several studies have it."""
    jobs = [job for study in reversed(studies) for job in reversed(_jobs(study, quick))]
    return list({job.log.stem[-8:]: job for job in jobs}.values())[::-1]


def _jobs(study: str, quick: bool) -> list[Job]:
    """Of what is not done of a study, what enters the zoo first."""
    file = FOLDER / f"{study}.yaml"
    plan = make_plan(read_study(file, quick))
    called, cells = names(plan), {hash: cell for cell in plan.cells for hash in cell.runs.values()}
    found = []
    for line in lines_of(plan, RUNS):
        coordinates = cells[line.hash].coordinates
        model = _model(study, coordinates, quick)
        if line.state in (State.DONE, State.STALE) and (model is None or Path("weights", model[0]).is_dir()):
            continue
        config = plan.runs[line.hash].config or {}
        needs = config["model"]["init_args"].get("pretrained")
        flags = ["--quick"] * quick
        ablate, which = [sys.executable, "main.py", "ablate"], [str(file), *flags, "--only", line.hash[:8]]
        restored = line.state is State.STALE and not Path(RUNS, "store", line.hash, "checkpoints").is_dir()
        run = [[*ablate, "retry", *which, "--stale"]] * restored + [[*ablate, "run", *which, "--jobs", "1"]]
        add = [] if model is None else [["flock", "runs/.zoo", sys.executable, *_add(line.hash, *model)]]
        RUNS.mkdir(exist_ok=True)
        name = f"{study}: {called[line.hash]}"
        found.append(Job(name, [*run, *add], needs, RUNS / f"{study}_{line.hash[:8]}.log"))
    return sorted(found, key=lambda job: "zoo" in job.commands[-1], reverse=True)


def _model(study: str, coordinates: Mapping[str, str], quick: bool) -> tuple[str, str] | None:
    """Name and title in the zoo of what a run trains; None where it is a row of a table only."""
    prior, training = coordinates.get("prior", ""), coordinates.get("training", "")
    kind, beside = study.removeprefix("denoisers_"), coordinates.get("include", "")
    if kind in DENOISERS:
        name = beside or prior
        if name not in FAMILIES or (not beside and coordinates.get("network", "DRUNet") != "DRUNet"):
            return None
        short, title = _called(name, quick)
        return f"{kind}_{short}_denoiser", f"{title}, denoising of {DENOISERS[kind]}"
    trained = TRAINED.get((study, coordinates.get("scale", "")))
    if trained is None or beside or training != "equilibrium":
        return None
    short, title = _called(prior, quick)
    return trained[0].format(short), f"{title}, {trained[1]}"


def _called(family: str, quick: bool) -> tuple[str, str]:
    small, full, title = FAMILIES[family]
    return (small, title.format("small DnCNN")) if quick else (full, title.format("DRUNet"))


def _add(hash: str, model: str, title: str) -> list[str]:
    return ["main.py", "zoo", "add", f"runs/store/{hash}", model, "--title", title]


def _stop(running: list[Job], patience: float = 20.0) -> None:
    """Let them save their state."""
    for job in running:
        if job.process is not None and job.process.poll() is None:
            os.killpg(job.process.pid, signal.SIGTERM)
    for job in running:
        if job.process is not None:
            try:
                job.process.wait(patience)
            except subprocess.TimeoutExpired:
                os.killpg(job.process.pid, signal.SIGKILL)


def _since(begun: float) -> str:
    return f"{(time.monotonic() - begun) / 60:.1f} min"


def _say(text: str) -> None:
    CONSOLE.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
