"""A study on a cluster, from the YAML to the report, and a fit without a study."""

from __future__ import annotations

import re
from pathlib import Path

from elder.ablation.planning.plan import load_plan
from elder.ablation.running.folder import RunFolder
from tests.ablation.conftest import Slurm, until
from tests.ablation.studies import begin, call, end, write_study

STUDY = """
base: tiny.yaml
set: {trainer.max_epochs: 1}
axes: {backward: {implicit: {}, jfb: {model.reconstruction.backward: JacobianFree}}}
resources: {cpus: 1, minutes: 10, memory_gb: 1, accelerator: cpu}
profiles: {slurm: {requeues: 1, resources: {cpus: 1, minutes: 10, memory_gb: 1, accelerator: cpu}}}
"""


def test_a_study_and_a_single_fit_on_a_cluster(slurm: Slurm, tmp_path: Path) -> None:
    study = write_study(tmp_path, STUDY, "queued")
    root = ("--root", tmp_path / "runs")
    process = begin("ablate", "run", study, "--profile", "slurm", *root)
    folder = tmp_path / "runs" / "studies" / "queued"
    until((folder / "plan.json").exists, "a plan", 60)
    runs = [RunFolder(tmp_path / "runs" / "store" / hash) for hash in load_plan(folder).runs]
    until(lambda: any((run.path / "log.txt").exists() for run in runs), "a job", 60)
    assert re.search(r"2 runs: .*(queued|running)", call("ablate", "status", study, *root))
    printed = end(process)
    assert printed.count(": submitted") == 2
    assert "queued: 2 done; compare: " in printed
    assert all(run.attempt(1).executor == "slurm" for run in runs)
    status = call("ablate", "status", study, *root)
    assert re.search(r"backward=jfb +0 +done +1/1 +\d\d\.\d\d +1 *\n", status)
    assert "| backward=jfb |" in call("ablate", "report", study, *root)
    assert (folder / "report" / "report.html").stat().st_size > 10_000

    options = ("--trainer.max_epochs", "1", "--run_dir", tmp_path / "alone")
    profile = tmp_path / "small.yaml"
    profile.write_text("accelerator: cpu\nresources: {cpus: 1, minutes: 10, memory_gb: 1}\n")
    printed = call("submit", "--profile", profile, "fit", "--config", tmp_path / "tiny.yaml", *options)
    found = re.search(r"^job (\d+): (\S+); its output: (\S+)$", printed, re.MULTILINE)
    assert found is not None, printed
    assert Path(found[2]).read_text() in printed
    assert slurm.wait(found[1], "COMPLETED", "FAILED", "CANCELLED") == "COMPLETED", Path(found[3]).read_text()
    assert (tmp_path / "alone" / "regularizer.safetensors").exists()
