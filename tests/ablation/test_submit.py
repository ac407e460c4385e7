"""One run as a job of its own: the script, the profile behind it, and a real fit that is requeued."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from elder.ablation.planning.study import Resources
from elder.ablation.slurm import cluster
from elder.ablation.slurm.profiles import ProfileError, SlurmProfile, find_profile, read_profile
from elder.ablation.slurm.submit import check, folder_of, script, submit, write_script
from tests.ablation.conftest import Slurm, until
from tests.runs import ROOT, run, write_config

MAIN = ROOT / "main.py"
LIGHT = SlurmProfile(resources=Resources(cpus=1, minutes=10, memory_gb=1, accelerator="cpu"), requeues=3)


def lines(command: list[str], profile: SlurmProfile, folder: Path) -> list[str]:
    return script(command, profile, MAIN, folder / "submit.sh").splitlines()


def test_a_mistake_in_the_configuration_is_refused_before_it_waits_in_a_queue(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    check(["fit", "--config", str(config)], ROOT / "main.py")
    with pytest.raises(ValueError, match="max_epoch"):
        check(["fit", "--config", str(config), "--trainer.max_epoch", "1"], ROOT / "main.py")


def test_a_fit_that_is_interrupted_goes_on_in_the_same_job(slurm: Slurm, tmp_path: Path) -> None:
    config = write_config(tmp_path, trainer__max_epochs=4, data__init_args__batch_size=1)
    run("fit", config, f"--run_dir={tmp_path / 'whole'}")
    folder = tmp_path / "run"
    job = submit(["fit", "--config", str(config)], LIGHT, MAIN, folder)
    log = folder / "metrics.jsonl"
    until(lambda: log.exists() and '"step": 4, "epoch": 1' in log.read_text(), "the second epoch", 90)
    slurm.command("scancel", "--signal=USR1", job)
    until(lambda: (folder / "requeue").exists(), "the state to be saved", 60)
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert 4 < saved["global_step"] < 16
    assert slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", seconds=120) == "COMPLETED", printed(folder, job)
    assert "Restarts=1" in slurm.command("scontrol", "show", "job", job)
    whole, resumed = (
        torch.load(d / "checkpoints" / "last.ckpt", weights_only=True) for d in (tmp_path / "whole", folder)
    )
    assert whole["global_step"] == resumed["global_step"] == 16
    for name, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name


def test_a_cancelled_job_does_not_come_back(slurm: Slurm, tmp_path: Path) -> None:
    entry = tmp_path / "stopping.py"
    entry.write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "pathlib.Path(sys.argv[2], 'begun').touch()\n"
        "time.sleep(60)\n"
    )
    listening = replace(LIGHT, setup=("trap : TERM",))  # the script itself outlives the first signal
    job = submit(["fit", str(tmp_path)], listening, entry, tmp_path)
    until((tmp_path / "begun").exists, "the job to begin", 30)
    slurm.command("scancel", job)
    assert slurm.wait(job, "CANCELLED", "PENDING", "COMPLETED", "FAILED", seconds=30) == "CANCELLED"
    assert (tmp_path / "requeue").exists()  # it did end with status 75


def test_a_job_that_never_gets_anywhere_is_requeued_so_often_and_no_more(slurm: Slurm, tmp_path: Path) -> None:
    entry = tmp_path / "giving_up.py"
    entry.write_text("import os, signal; print('begun', flush=True); os.kill(os.getpid(), signal.SIGUSR1)\n")
    profile = SlurmProfile(resources=LIGHT.resources, requeues=1)
    job = submit(["test"], profile, entry, tmp_path)
    assert slurm.wait(job, "FAILED", "COMPLETED", seconds=60) == "FAILED"
    assert printed(tmp_path, job).count("begun\n") == 2
    assert "requeued 1 times: submit again to go on" in printed(tmp_path, job)
    assert "ExitCode=75:0" in slurm.command("scontrol", "show", "job", job)


def test_a_failure_is_a_failure(slurm: Slurm, tmp_path: Path) -> None:
    entry = tmp_path / "failing.py"
    entry.write_text("import os, sys, time\nsys.exit(3) if os.environ['SLURM_PROCID'] == '1' else time.sleep(60)\n")
    job = submit(["fit", "--trainer.devices=2"], LIGHT, entry, tmp_path)
    assert slurm.wait(job, "FAILED", "COMPLETED", "PENDING", seconds=30) in ("FAILED", "PENDING")
    assert slurm.wait(job, "FAILED", "COMPLETED", seconds=30) == "FAILED"
    assert "Restarts=0" in slurm.command("scontrol", "show", "job", job)
    with pytest.raises(OSError, match=r"sbatch: expected a job, got .*invalid partition"):
        submit(["fit"], SlurmProfile(partition="nope"), entry, tmp_path)


def printed(folder: Path, job: str) -> str:
    return (folder / f"slurm-{job}.out").read_text()


# Without a cluster.


def test_the_script_can_be_read_and_edited(tmp_path: Path) -> None:
    profile = SlurmProfile(
        partition="gpu", accelerator="gpu", gpu_type="a100", setup=("module load cuda",), sbatch={"exclusive": True}
    )
    (config := tmp_path / "a b.yaml").write_text("trainer: {devices: 8}")
    command = ["fit", "--config", str(config), "--trainer.devices=4", "--trainer.num_nodes", "2", "--x=$(rm) --y"]
    path = write_script(command, profile, MAIN, tmp_path / "runs" / "a")
    assert path == tmp_path / "runs" / "a" / "submit.sh"
    text = path.read_text()
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    written = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert written == [
        "--job-name=elder-a",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--cpus-per-task=2",
        "--time=240",
        "--mem=8192M",
        "--gpus-per-node=a100:4",
        "--partition=gpu",
        "--signal=USR1@90",
        "--requeue",
        "--open-mode=append",
        "--exclusive",
        f"--output={tmp_path}/runs/a/slurm-%j.out",
    ]
    assert text.index("module load cuda") < text.index("srun")
    assert "'--x=$(rm) --y'" in text
    assert "--ckpt_path last" in text
    assert text.count("--trainer.devices") == 2  # in the comment, and in the command


def test_devices_and_nodes_of_a_configuration_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("trainer: {devices: 4, num_nodes: 2}")
    (tmp_path / "b.yaml").write_text("trainer: {devices: auto}")
    command = ["fit", "--config", str(tmp_path / "a.yaml")]
    written = lines(command, LIGHT, tmp_path)
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=4"} <= {*written}
    assert "--trainer." not in "".join(written)
    written = lines([*command, "--config", str(tmp_path / "b.yaml")], LIGHT, tmp_path)
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1"} <= {*written}
    assert "    --trainer.devices 1 \\" in written


def test_a_fit_from_a_checkpoint_of_its_own_resumes_only_when_requeued(tmp_path: Path) -> None:
    text = "\n".join(lines(["fit", "--ckpt_path", "best.ckpt"], LIGHT, tmp_path))
    assert "--ckpt_path best.ckpt" in text
    assert "((${SLURM_RESTART_COUNT:-0})) && go_on=(--ckpt_path last)" in text
    assert "ckpt_path" not in "\n".join(lines(["test"], LIGHT, tmp_path))


def test_the_folder_is_that_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("run_dir: runs/a")
    (tmp_path / "b.yaml").write_text("trainer: {}")
    (tmp_path / "bad.yaml").write_text("a: [")
    a, b = str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")
    assert folder_of(["fit", "--config", a, f"--config={b}"]) == Path("runs/a")
    assert folder_of(["fit", "-c", a, "--run_dir=runs/c"]) == Path("runs/c")
    assert folder_of(["fit"]) == Path("runs/default")
    with pytest.raises(ValueError, match=r"bad.yaml: expected a configuration"):
        folder_of(["fit", "--config", str(tmp_path / "bad.yaml")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"partitoin": "gpu"}, "f: partitoin: expected a setting of a profile, got an unknown key; did you mean part"),
        ({"resources": {"cpu": 1}}, "f: resources.cpu: expected a setting of a profile, got an unknown key"),
        ({"max_jobs": "many"}, "f: max_jobs: expected int, got 'many'"),
        ({"requeues": True}, "f: requeues: expected int, got True"),
        ({"setup": "module load cuda"}, "f: setup: expected a list of lines, got 'module load cuda'"),
        ({"sbatch": {"mail-type": ["FAIL"]}}, "f: sbatch: expected options and their values"),
        ({"accelerator": "tpu"}, "f: accelerator: expected cpu or gpu, got 'tpu'"),
        ({"array_parallelism": 0}, "f: array_parallelism: expected 1 or more, got 0"),
        ([], r"f: the profile: expected keys and values, got \[\]"),
    ],
)
def test_a_mistake_in_a_profile_names_file_and_key(settings: object, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        read_profile(settings, "f")  # pyright: ignore


def test_the_shipped_profile_is_read_and_a_study_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    shipped = find_profile("slurm")
    assert shipped.accelerator == "gpu"
    assert shipped.resources == Resources(cpus=4, minutes=240, memory_gb=32)
    assert set(yaml.safe_load((ROOT / "configs/profiles/slurm.yaml").read_text())) <= set(SlurmProfile.__slots__)
    changed = find_profile("slurm", {"slurm": {"partition": "a", "resources": {"cpus": 1}}}, "study.yaml")
    assert (changed.partition, changed.resources) == ("a", Resources(cpus=1, minutes=240, memory_gb=32))
    assert changed.setup == shipped.setup
    with pytest.raises(ProfileError, match=r"study.yaml: profiles.slurm: partitoin: expected"):
        find_profile("slurm", {"slurm": {"partitoin": "a"}}, "study.yaml")
    with pytest.raises(ProfileError, match=r"profile: expected a YAML file or one of slurm, got other"):
        find_profile("other")
    (tmp_path / "own.yaml").write_text("partition: b\nqos: [")
    with pytest.raises(ProfileError, match=r"own.yaml: expected a YAML file"):
        find_profile(str(tmp_path / "own.yaml"))


def test_a_job_is_submitted_as_if_from_outside_of_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    with cluster.outside():  # of a job there is no sign: these were set by a user
        assert os.environ["SLURM_NTASKS"] == "4"
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with cluster.outside():
        assert "SLURM_NTASKS" not in os.environ
        assert os.environ["SLURM_CONF"] == "/etc/slurm.conf"
    assert os.environ["SLURM_NTASKS"] == "4"


def test_one_element_of_an_array_is_not_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "40")
    assert cluster.own_job() == "40"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert cluster.own_job() == "40_3"
