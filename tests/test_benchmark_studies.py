"""`python -m benchmarks.studies`: what begins from a model waits for it, and every such model is made."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from benchmarks import studies
from benchmarks.studies import STUDIES, Job, _model, main
from elder.ablation.planning.plan import make_plan
from elder.ablation.planning.study import read_study
from tests.runs import ROOT


def job(name: str, *codes: str, needs: str | None = None) -> Job:
    return Job(name, [[sys.executable, "-c", code] for code in codes], needs, Path(f"{name}.log"))


@pytest.mark.parametrize("quick", [True, False], ids=["quick", "full"])
def test_what_a_study_begins_from_is_made_by_another(monkeypatch: pytest.MonkeyPatch, quick: bool) -> None:
    """Under that name, and of the same architecture."""
    monkeypatch.chdir(ROOT)
    known = [name for name in STUDIES if quick or name != "cbsd68"]  # whose models are small
    plans = {name: make_plan(read_study(studies.FOLDER / f"{name}.yaml", quick)) for name in known}
    made = {}
    for name, plan in plans.items():
        for cell in plan.cells:
            if model := _model(name, cell.coordinates, quick):
                (hash,) = cell.runs.values()
                assert model[0] not in made
                made[model[0]] = prior(plan.runs[hash].config)
    for name, plan in plans.items():
        configs = [run.config or {} for run in plan.runs.values()]
        begun = [config for config in configs if config["model"]["init_args"].get("pretrained")]
        assert bool(begun) != name.startswith("denoisers"), name
        for config in begun:
            assert made[config["model"]["init_args"]["pretrained"]] == prior(config), name


def prior(config: dict | None) -> dict:
    arguments = (config or {})["model"]["init_args"]
    found = arguments["regularizer"] if "regularizer" in arguments else arguments["reconstruction"]["prior"]
    return found["init_args"]["regularizer"] if found["class_path"].rpartition(".")[2] == "Confined" else found


def test_jobs_wait_for_what_they_need_and_are_stopped_in_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = [
        job("late", "from pathlib import Path; Path('late').touch()", needs="model"),
        job("never", "", needs="absent"),
        job("long", "import time; time.sleep(600)"),
        job("bad", "raise SystemExit(3)", "from pathlib import Path; Path('after').touch()"),
        job("first", "print('begun')", "from pathlib import Path; Path('weights/model').mkdir(parents=True)"),
    ]
    monkeypatch.setattr(studies, "_all_jobs", lambda *_: jobs)
    begun = time.monotonic()
    main(jobs=2, minutes=0.1)
    assert time.monotonic() - begun < 30, "a process that does not end is not waited for"
    assert Path("late").exists() and not Path("after").exists()
    assert Path("first.log").read_text() == "begun\n"
    said = capsys.readouterr().out
    assert "bad: failed, see bad.log" in said and "1 stopped, 1 not begun" in said
