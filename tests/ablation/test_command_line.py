"""The words of `main.py ablate …` and `main.py submit …`: what they do to runs of a stand-in, and what they refuse."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from elder.ablation import command_line
from elder.ablation.planning.plan import load_plan, save_plan
from elder.ablation.planning.runs import Cell, Plan, Run
from elder.ablation.planning.study import Resources
from elder.ablation.running import files
from elder.ablation.running import folder as folder_module
from elder.ablation.running.folder import RunFolder, State, Status
from elder.ablation.running.provenance import code_fingerprint
from elder.ablation.running.records import Attempt, this_process
from tests.ablation.plans import until
from tests.ablation.studies import MAIN, PAIR, TORCH, begin, call, end, stand_in, write_study

Ablate = Callable[..., str]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the study `pair.yaml`, and a main.py that this process seems to be."""
    write_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(stand_in(tmp_path))])
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("ELDER_TRACEBACK", raising=False)
    return tmp_path


@pytest.fixture
def main(place: Path, capsys: pytest.CaptureFixture[str]) -> Ablate:
    """`main.py WORDS` in this process, which has loaded torch already; what it printed."""

    def give(*words: str, status: int = 0) -> str:
        capsys.readouterr()
        try:
            found = command_line.main(words)
        except SystemExit as exit:
            found = exit.code
        printed = capsys.readouterr()
        assert found == status, printed
        return printed.out + printed.err

    return give


# What runs.


def test_flags_and_patterns(main: Ablate, place: Path) -> None:
    printed = main("ablate", "run", "pair.yaml", "--only", "lr=0.001 s1", "--jobs", "2")
    assert printed.endswith("pair: 1 done; compare: python main.py ablate report pair.yaml\n")
    assert "4 runs: 3 new, 1 done" in main("ablate", "status", "pair.yaml", "--all")
    assert "2 runs: 2 new" in main("ablate", "plan", "pair.yaml", "--quick")
    assert "2 runs: 2 new" in main("ablate", "status", "pair.yaml", "--quick=true", "--root", "runs")
    assert "2 done; compare: python main.py ablate report pair.yaml --quick\n" in main(
        "ablate", "run", "pair.yaml", "--quick", "--profile", "local"
    )
    assert "4 runs: 3 new, 1 done" in main("ablate", "status", "pair.yaml")
    assert {path.name for path in (place / "runs" / "studies").iterdir()} == {"pair", "pair-quick"}
    assert "begins at step 0" in main("ablate", "logs", "pair.yaml", "--only", "lr=0.001 s1")
    assert main("ablate", "logs", "pair.yaml", "--only", "s0") == "no run that is meant has a log\n"
    assert "no run has failed or is at work" in main("ablate", "logs", "pair.yaml")


def test_a_failure_is_tried_again_when_it_is_mended(main: Ablate, place: Path) -> None:
    (place / "pair.yaml").write_text(PAIR.replace("0.001", "1.0e+30"))
    printed = main("ablate", "run", "pair.yaml", status=1)
    assert "failed (divergence): error: LBFGS: the iterate is no longer finite at step 0; not tried again" in printed
    assert "pair: 2 done, 2 failed" in printed
    (place / "mended").touch()
    assert "started" not in main("ablate", "run", "pair.yaml", status=1)
    assert main("ablate", "retry", "pair.yaml", "--only", "s1") == (
        "1 runs can be tried again: python main.py ablate run pair.yaml\n"
    )
    assert "pair: 3 done, 1 failed" in main("ablate", "run", "pair.yaml", status=1)
    assert main("ablate", "retry", "pair.yaml").startswith("1 runs")
    assert "pair: 4 done" in main("ablate", "run", "pair.yaml")
    assert main("ablate", "retry", "pair.yaml", "--stale").startswith("0 runs")


def test_runs_are_cancelled_from_elsewhere_and_gone_on_with(main: Ablate, place: Path) -> None:
    (place / "pair.yaml").write_text(PAIR + "set: {trainer.max_epochs: 200}\n")
    process = begin("ablate", "run", "pair.yaml", main=place / "main.py", cwd=place)
    study = place / "runs" / "studies" / "pair"
    until((study / "plan.json").exists, 60)
    folders = [RunFolder(place / "runs" / "store" / hash) for hash in load_plan(study).runs]
    until(lambda: sum((f.path / "metrics.jsonl").exists() for f in folders) == 2, 60)
    assert "2 new, 2 running" in main("ablate", "status", str(study))
    assert main("ablate", "cancel", "pair.yaml", "--only", "baseline s0").startswith("1 runs are asked to stop")
    until(lambda: (s := folders[0].status()) and s.state is State.INTERRUPTED, 60)
    until(lambda: sum((f.path / "metrics.jsonl").exists() for f in folders) == 3, 60)
    process.send_signal(signal.SIGINT)
    printed = end(process, 1)
    assert "baseline s0: cancelled; the next run of the study goes on with it" in printed
    assert "pair: 1 cancelled, 2 interrupted, 1 new; compare" in printed
    assert "4 runs: 1 new, 3 interrupted" in main("ablate", "status", "pair.yaml")
    assert main("ablate", "cancel", str(study)).startswith("0 runs")


def test_prune_removes_what_no_study_has(main: Ablate, place: Path) -> None:
    assert main("ablate", "prune", "pair.yaml").startswith("0 folders, 0.0 MiB")
    main("ablate", "run", "pair.yaml", "--only", "s0")
    store = place / "runs" / "store"
    (place / "pair.yaml").write_text(PAIR.replace("0.001", "0.002"))
    main("ablate", "plan", "pair.yaml")
    listed = main("ablate", "prune", "pair.yaml")
    assert "1 folders" in listed
    assert "nothing was removed, add --yes" in listed
    assert len([*store.iterdir()]) == 2
    assert "MiB: removed" in main("ablate", "prune", "pair.yaml", "--yes")
    (left,) = store.iterdir()
    assert "1 folders" in main("ablate", "prune", "pair.yaml", "--checkpoints", "--yes")
    assert not (left / "checkpoints").exists()
    assert "4 runs: 3 new, 1 done" in main("ablate", "status", "pair.yaml")


def test_a_live_line_on_a_terminal(place: Path) -> None:
    (place / "pair.yaml").write_text(PAIR.replace("[0, 1]", "1"))
    parent, child = pty.openpty()
    words = [sys.executable, str(place / "main.py"), "ablate", "run", "pair.yaml"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(words, cwd=place, env=environment, stdin=child, stdout=child, stderr=child)
    os.close(child)
    shown = b""
    with os.fdopen(parent, "rb", buffering=0) as terminal:
        while True:
            try:
                shown += (part := terminal.read(4096))
            except OSError:  # the other end was closed
                break
            if not part:
                break
    assert process.wait(60) == 0
    text = shown.decode()
    assert "\x1b[2K" in text  # the live line is taken away
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # and the cursor comes back
    assert re.search(r"2 runs: 2 new", text)
    plain = [line for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).splitlines() if line]
    events = [line for line in plain if re.match(r"\d\d:\d\d:\d\d \w{8} ", line)]
    assert len(events) == 4, plain
    assert all(re.fullmatch(r"[\d:]{8} \w{8} \S+ s0: (started|done, PSNR 30.06)", line) for line in events), events
    assert plain[-1] == "pair: 2 done; compare: python main.py ablate report pair.yaml"


# What is refused.


@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        ("ablate", 2, 'expected "subcommand" to be one of {plan,run,status,logs,cancel'),
        ("ablate frob", 2, "invalid choice: 'frob' (choose from 'plan', 'run', 'status'"),
        ("ablate plan", 2, "the following arguments are required: file"),
        ("ablate plan none.yaml", 2, "none.yaml: expected a YAML file, got No such file or directory"),
        ("ablate plan no.yaml", 2, "no.yaml: line 1, column 8: expected YAML, found a mistake: "),
        ("ablate run pair.yaml --jobs 0", 1, "jobs: expected at least 1, got 0"),
        ("ablate run pair.yaml --jobs many", 2, "jobs: expected int, got many"),
        ("ablate run pair.yaml --only lbfgs", 1, "only: expected a part of the name of a run, as of '"),
        ("ablate run pair.yaml --profile big", 2, "profile: expected a YAML file or one of local, slurm, got big"),
        ("ablate run pair.yaml --jbos 3", 2, "unrecognized arguments: --jbos"),
        ("ablate run pair.yaml --root main.py/x", 1, "main.py/x: expected a folder that can be written to, got: Not a"),
        ("ablate status .", 2, "plan.json: expected a plan, got No such file or directory; make it with `plan`"),
        ("ablate plan tiny.yaml", 2, "tiny.yaml: model: unknown key; expected one of name, base, set"),
        ("ablate plan tiny.yaml --quick", 2, "tiny.yaml: expected a key `quick`, found none; add one or leave --quick"),
        ("submit", 1, "(fit, validate, test, predict, tune, trace, certify), got none"),
        ("submit frob", 1, "a command of main.py (fit, validate, test, predict, tune, trace, certify), got frob"),
        ("submit fit --config tiny.yaml --dry_run", 1, "submit: expected --dry_run before fit, got it after that"),
        ("submit --dry_run fit --config none.yaml", 1, "none.yaml: expected a configuration, got "),
        ("submit --profile big fit --config tiny.yaml", 2, "profile: expected a YAML file or one of slurm, got big"),
        ("submit --dryrun fit --config tiny.yaml", 2, "unrecognized arguments: --dryrun"),
    ],
)
def test_words_that_mean_nothing(main: Ablate, place: Path, words: str, status: int, expected: str) -> None:
    (place / "no.yaml").write_text("axes: [}\n")
    printed = main(*words.split(), status=status)
    assert printed.count(expected) == 1, printed
    assert printed.startswith("error: ")
    assert len(printed.splitlines()) <= 12
    assert not (place / "runs" / "store").exists() or not [*(place / "runs" / "store").iterdir()]


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("pair.yaml", "seeds:", "sedes:", "pair.yaml: sedes: unknown key; did you mean seeds?"),
        ("pair.yaml", "model.optimizer.lr", "model.optimizer.rate", "model.optimizer"),
        ("pair.yaml", "0.001]", "fast]", "pair.yaml: axes.lr.values[1]: model.optimizer.lr: expected float"),
        ("pair.yaml", "cpus: 1", "cpu: 1", "pair.yaml: resources.cpu: unknown key; did you mean cpus?"),
        ("tiny.yaml", "max_steps: 200", "max_step: 200", "tiny.yaml: model.reconstruction.solver"),
        ("tiny.yaml", "class_path: Ridge", "class_path: Rigde", "tiny.yaml: model.reconstruction.prior"),
    ],
)
def test_typos_name_the_file_and_the_key(
    main: Ablate, place: Path, monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str, expected: str
) -> None:
    text = (place / file).read_text()
    assert old in text
    (place / file).write_text(text.replace(old, new))
    printed = main("ablate", "run", "pair.yaml", status=2)
    assert expected in printed, printed
    assert len(set(printed.splitlines())) == len(printed.splitlines())
    assert all(line.startswith("error: ") and len(line) < 400 for line in printed.splitlines()), printed
    assert not (place / "runs" / "store").exists()
    monkeypatch.setenv("ELDER_TRACEBACK", "1")
    with pytest.raises(command_line.StudyError):
        command_line.main(["ablate", "run", "pair.yaml"])


def test_submit_writes_a_script_and_help_tells_of_both(main: Ablate, place: Path) -> None:
    printed = main("submit", "--dry_run", "fit", "--config", "tiny.yaml", "--run_dir", "one")
    assert printed.startswith("#!/bin/bash\n# python main.py fit --config tiny.yaml --run_dir one\n")
    assert printed.splitlines()[-1].startswith(f"script: {place / 'one' / 'submit.sh'}; submit it with: sbatch ")
    assert "--config" in main("submit", "--help")
    assert "plan,run,status,logs" in main("ablate", "--help")


# Many runs.


def many(root: Path, count: int) -> Path:
    """The folder of a study of `count` runs, a tenth of them failed and the others done."""
    runs, cells = {}, []
    for i in range(count):
        hash = f"{i:016x}"
        runs[hash] = Run(hash, hash, "train", ("fit", "test"), 0, (), {}, None, Resources(), 4, 4)
        cells.append(Cell({"a": str(i)}, 0, {"train": hash}, f"a={i}"))
        folder = root / "store" / hash
        (folder / "attempts").mkdir(parents=True)
        attempt = Attempt(1, this_process())
        (folder / "attempts" / "0001.json").write_text(json.dumps(attempt.to_json()))
        state = State.DONE if i % 10 else State.FAILED
        (folder / "status.json").write_text(json.dumps(Status(state, 1, code=code_fingerprint()).to_json()))
    axes = {"a": [str(i) for i in range(count)]}
    plan = Plan("many", "many.yaml", axes, {"a": "0"}, {"psnr": "max"}, cells, runs, ("train",), "local", {}, (0,))
    return save_plan(plan, root).parent


def test_the_status_of_many_runs_reads_little_of_each_and_no_torch(
    main: Ablate, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = {}
    for count in (100, 1000):
        study, looked = many(place / str(count), count), [0]
        real = files.read_json

        def counted(path: Path, looked: list[int] = looked, real: Callable[[Path], object] = real) -> object:
            looked[0] += 1
            return real(path)

        for module in (folder_module, files):
            monkeypatch.setattr(module, "read_json", counted)
        printed = main("ablate", "status", str(study))
        monkeypatch.undo()
        monkeypatch.setenv("COLUMNS", "160")
        assert f"{count} runs: {count // 10} failed, {count - count // 10} done" in printed
        reads[count] = looked[0] / count
        assert len(printed.splitlines()) < 250
    assert reads == {100: 1.0, 1000: 1.0}
    assert "… and 900 more; --all shows them" in printed
    assert main("ablate", "status", str(study), "--all").count(" done ") == 900
    printed = call("importtime", MAIN, "ablate", "status", study, main=Path("-X"), cwd=place)
    assert "elder.ablation.running.status" in printed
    assert not TORCH.search(printed)


def test_the_head_of_a_table_is_enough(place: Path) -> None:
    study = many(place, 1000)
    shell = f"{sys.executable} main.py ablate status {study} --all | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=place, capture_output=True, text=True, check=True, timeout=60)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1
    assert done.stdout.startswith("run ")
