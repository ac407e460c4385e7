"""From a study to its plan: which cells there are, which runs they share, and where a mistake comes from."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.ablation import write_study
from elder.ablation.planning import making, signatures, trees
from elder.ablation.planning.cells import cells_of, covering
from elder.ablation.planning.documents import StudyError
from elder.ablation.planning.plan import Plan, Run, is_current, load_plan, make_plan, save_plan
from elder.ablation.planning.study import read_study
from tests.runs import ROOT

SOLVER, RULE = "model.reconstruction.solver", "model.reconstruction.backward"
LBFGS, PICARD = {"class_path": "LBFGS"}, {"class_path": "Picard"}
AXES: dict[str, Any] = {
    "solver": {"lbfgs": {SOLVER: LBFGS}, "picard": {SOLVER: PICARD}},
    "backward": {"implicit": {RULE: "Implicit"}, "jfb": {RULE: "JacobianFree"}},
}
STAGES = {
    "pretrain": {"base": "mri_denoiser.yaml", "commands": ["fit"], "set": {"trainer.max_epochs": 2}},
    "train": {"inputs": {"model.pretrained": "pretrain/regularizer.safetensors"}},
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(making, "_WHOLE", 2)  # for speed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("mri.yaml", "mri_denoiser.yaml"):
        (tmp_path / name).write_text((ROOT / "configs" / name).read_text())
    return tmp_path


def plan(folder: Path, **parts: Any) -> Plan:
    return make_plan(read_study(write(folder, **parts)))


def write(folder: Path, **parts: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"base": "mri.yaml", **parts}, sort_keys=False))
    return path


def refusal(folder: Path, **parts: Any) -> list[str]:
    with pytest.raises(StudyError) as refused:
        plan(folder, **parts)
    return [line.removeprefix(f"{folder}/") for line in refused.value.mistakes]


def coordinates(made: Plan) -> list[str]:
    return [",".join(value for _, value in items) for items in made.variants()]


# Cells.


def test_the_product_begins_with_the_baseline(folder: Path) -> None:
    made = plan(folder, axes=AXES, seeds=[4, 2], baseline={"solver": "picard"})
    assert coordinates(made) == ["picard,implicit", "lbfgs,implicit", "lbfgs,jfb", "picard,jfb"]
    assert [cell.seed for cell in made.cells] == [4, 2] * 4
    assert [cell.label for cell in made.cells[::2]] == [
        "baseline",
        "solver=lbfgs",
        "solver=lbfgs, backward=jfb",
        "backward=jfb",
    ]
    assert made.baseline == {"solver": "picard", "backward": "implicit"}
    assert made.axes == {"solver": ["lbfgs", "picard"], "backward": ["implicit", "jfb"]}
    assert len(made.runs) == 8
    assert len({run.group for run in made.runs.values()}) == 4
    run = made.runs[made.cells[0].final]
    assert run.config is not None
    assert (run.seed, run.config["seed_everything"], run.commands) == (4, 4, ("fit", "test"))
    assert trees.get(run.config, "data.train_seed") == 4
    assert trees.get(run.config, "data.seed") is None, "measurements of the test do not depend on the seed of a run"
    assert (run.batch_size, run.max_epochs) == (2, 10)
    assert "run_dir" not in run.config
    assert trees.get(run.config, SOLVER) == PICARD  # LBFGS and its arguments are gone
    assert trees.get(run.config, RULE) == "Implicit"


def test_axes_may_be_zipped_conditional_excluded_and_included(folder: Path) -> None:
    made = plan(
        folder,
        axes=AXES | {"step": {"key": f"{SOLVER}.max_steps", "values": [7, 8]}},
        zip=[{"epochs": {"key": "trainer.max_epochs", "values": [1, 2]}, "data.batch_size": [2, 1]}],
        when={"step": {"solver": "picard"}, "epochs": {"step": [7]}},
        exclude=[{"solver": "picard", "backward": "jfb", "step": "8"}, {"solver": "lbfgs", "data.batch_size": 1}],
        include=[
            {"backward": "jfb", "set": {"model.optimizer.lr": 0.1}, "name": "fast"},
            {"solver": "lbfgs", "backward": "jfb", "data.batch_size": 1},
        ],
    )
    assert coordinates(made) == [
        "lbfgs,implicit,2",
        "lbfgs,jfb,2",
        "picard,implicit,7,1,2",
        "picard,implicit,7,2,1",
        "picard,implicit,8,2",
        "picard,implicit,8,1",
        "picard,jfb,7,1,2",
        "picard,jfb,7,2,1",
        "lbfgs,jfb,2,fast",
        "lbfgs,jfb,1",
    ]
    fast = made.cells[-2]
    assert fast.label == "fast"
    assert fast.coordinates["include"] == "fast"
    assert trees.get(made.runs[fast.final].config, "model.optimizer.lr") == 0.1
    assert made.runs[made.cells[3].final].batch_size == 1
    assert made.runs[made.cells[3].final].max_epochs == 2
    assert made.runs[made.cells[4].final].max_epochs == 10
    assert "include" not in made.axes


def test_values_of_several_axes_may_change_something_together(folder: Path) -> None:
    epochs = "trainer.max_epochs"
    made = plan(
        folder,
        axes=AXES | {epochs: [2, 3]},
        where=[
            {"solver": "picard", "backward": "jfb", "set": {f"{SOLVER}.max_steps": 9, "model.optimizer.lr": 0.1}},
            {"backward": ["implicit"], epochs: "3", "set": {epochs: 5}},  # after what the axis sets
        ],
        include=[{"solver": "picard", "backward": "jfb", "set": {f"{SOLVER}.max_steps": 4}, "name": "short"}],
    )
    runs = {name: made.runs[cell.final] for name, cell in zip(coordinates(made), made.cells, strict=True)}
    assert {name: run.max_epochs for name, run in runs.items()} == {
        "lbfgs,implicit,2": 2,
        "lbfgs,implicit,3": 5,
        "lbfgs,jfb,2": 2,
        "lbfgs,jfb,3": 3,
        "picard,implicit,2": 2,
        "picard,implicit,3": 5,
        "picard,jfb,2": 2,
        "picard,jfb,3": 3,
        "picard,jfb,2,short": 2,
    }
    steps = {name: trees.get(run.config, f"{SOLVER}.max_steps") for name, run in runs.items()}
    assert {name for name, n in steps.items() if n == 9} == {"picard,jfb,2", "picard,jfb,3"}
    assert steps["picard,jfb,2,short"] == 4
    assert {name for name, run in runs.items() if trees.get(run.config, "model.optimizer.lr") == 0.1} == {
        *("picard,jfb,2", "picard,jfb,3", "picard,jfb,2,short")
    }


ZIP = [{"x": {"a": {}, "b": {}}, "y": {"c": {}, "d": {}}}]
WHEN = {"backward": {"solver": "picard"}}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"exclude": [{"solver": "lbfgs"}]}, "exclude[0]: expected the baseline to be kept"),
        (
            {"when": WHEN, "where": [{"solver": "lbfgs", "backward": "jfb", "set": {"trainer.max_epochs": 3}}]},
            "where[0]: expected to match a cell, matches none",
        ),
        ({"axes": AXES, "when": {"backward": {"solver": []}}}, "when.backward.solver: expected values of solver"),
        (
            {"when": WHEN, "exclude": [{"solver": "lbfgs", "backward": "jfb"}]},
            "exclude[0]: expected to match a cell, matches none",
        ),
        ({"when": WHEN, "baseline": {"backward": "jfb"}}, "baseline.backward: expected an axis that exists there"),
        ({"include": [{"backward": "jfb"}]}, "include[0]: expected a cell that is not there without it"),
        (
            {"axes": {f"data.a{i}": [*range(10)] for i in range(7)}},
            "axes: expected at most 200,000 cells with their seeds, got 10,000,000",
        ),
        (
            {"zip": ZIP, "baseline": {"x": "a", "y": "d"}},
            "baseline: expected values that are zipped together, got x=a, y=d",
        ),
    ],
)
def test_cells_that_cannot_be_are_mistakes(folder: Path, parts: dict[str, Any], expected: str) -> None:
    assert any(line.startswith(f"study.yaml: {expected}") for line in refusal(folder, **{"axes": AXES, **parts}))


# Runs.


def test_cells_share_a_pretraining(folder: Path) -> None:
    made = plan(folder, axes=AXES, stages=STAGES, seeds=2)
    first = [run for run in made.runs.values() if run.stage == "pretrain"]
    assert [run.seed for run in first] == [0, 1]
    assert len(made.runs) == 2 + 8
    assert next(iter(made.runs)) == first[0].hash
    for cell in made.cells:
        run = made.runs[cell.final]
        assert run.stage == "train"
        assert run.needs == (first[cell.seed].hash,) == (cell.runs["pretrain"],)
        assert run.inputs == {"model.pretrained": (first[cell.seed].hash, "regularizer.safetensors")}
        assert trees.get(run.config, "model.pretrained", "none") == "none"
    assert first[0].config is not None
    assert first[0].config["trainer"]["max_epochs"] == 2
    assert first[0].config["model"]["class_path"] == "DenoisingModule"


def test_an_axis_may_be_of_a_stage_and_may_do_without_it(folder: Path) -> None:
    axes = {
        "pretraining": {"long": {"pretrain.trainer.max_epochs": 9}, "short": {}, "none": {"model.pretrained": None}}
    }
    made = plan(folder, axes=axes, stages=STAGES)
    long, short, none = made.cells
    assert made.runs[long.runs["pretrain"]].max_epochs == 9
    assert made.runs[short.runs["pretrain"]].max_epochs == 2
    assert [*none.runs] == ["train"]
    assert len({cell.final for cell in made.cells}) == 3
    assert len(made.runs) == 5
    assert made.runs[none.final].needs == ()


def test_a_patch_may_say_the_commands_of_its_stage(folder: Path) -> None:
    """An axis, for the last stage or one by name; a variant, which comes later; a cell beside the product."""
    axes = {
        "how": {
            "plain": {},
            "tuned": {"commands": ["tune", "test"]},
            "traced": {"train.commands": ["fit", "test", "trace"]},
            "tested": {"pretrain.commands": ["fit", "test"]},
            "same": {"commands": ["fit", "test"]},
        }
    }
    made = plan(
        folder,
        axes=axes,
        variants={"first": {}, "second": {"commands": ["fit", "tune"]}},
        exclude=[{"variant": "second", "how": ["traced", "tested", "same"]}],
        include=[{"how": "tuned", "set": {"commands": ["validate"]}, "name": "beside"}],
        stages=STAGES,
    )
    whole = {cell.label: [made.runs[run].commands for run in cell.runs.values()] for cell in made.cells}
    assert whole == {
        "baseline": [("fit",), ("fit", "test")],
        "variant=second": [("fit",), ("fit", "tune")],
        "how=tuned": [("fit",), ("tune", "test")],
        "how=tuned, variant=second": [("fit",), ("fit", "tune")],
        "how=traced": [("fit",), ("fit", "test", "trace")],
        "how=tested": [("fit", "test"), ("fit", "test")],
        "how=same": [("fit",), ("fit", "test")],
        "beside": [("fit",), ("validate",)],
    }
    finals = {cell.label: cell.final for cell in made.cells}
    assert finals["how=same"] == finals["baseline"]
    assert finals["how=tuned, variant=second"] == finals["variant=second"]
    assert len(set(finals.values())) == 6, "what is done with a configuration counts, also in a stage before"
    assert len({json.dumps(made.runs[final].config) for final in finals.values()}) == 1
    assert plan(folder, set={"commands": ["tune", "test"]}, stages=STAGES).cells[0].final == finals["how=tuned"]


def test_commands_that_are_none_are_mistakes(folder: Path) -> None:
    listed = "commands: expected a list of fit, validate, test, predict, tune, trace, certify, got"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"commands": "test"}, f"{listed} 'test'"),
        ({"commands": []}, f"{listed} []"),
        ({"commands": None}, f"{listed} None"),
        ({"commands": ["fit", "tets"]}, f"{listed} ['fit', 'tets']"),
        ({"commands": [{"fit": 1}]}, f"{listed} [{{'fit': 1}}]"),
        ({"commands": ["fit", "fit"]}, "commands: expected each once, got fit, fit"),
        ({"pretrain.commands": ["tset"]}, f"{listed} ['tset']"),
        ({"commands.first": "fit"}, "commands: unknown key"),
        ({"pretrian.commands": ["fit"]}, "pretrian: unknown key"),
    ]
    values = {"plain": {}} | {f"v{i}": patch for i, (patch, _) in enumerate(cases)}
    lines = refusal(folder, axes={"how": values}, stages=STAGES)
    assert sorted(lines) == [f"study.yaml: axes.how.v{i}: {expected}" for i, (_, expected) in enumerate(cases)]


def test_an_option_that_a_later_command_lacks_is_a_mistake(folder: Path) -> None:
    options = {"max_evaluations": 3}
    (line,) = refusal(folder, stages={"train": {"commands": ["tune", "test"]}}, set=options)
    reason = "expected a key of all of tune, test, got one that test does not have"
    assert line.endswith(f"max_evaluations: {reason}") and "study.yaml: set" in line
    assert plan(folder, stages={"train": {"commands": ["tune"]}}, set=options).cells


def test_commands_are_no_key_of_a_configuration(folder: Path) -> None:
    (folder / "mri.yaml").write_text((folder / "mri.yaml").read_text() + "\ncommands: [tune]\n")
    (line,) = refusal(folder)
    assert line.startswith("mri.yaml: commands: unknown key"), line


def test_an_upstream_run_counts(folder: Path) -> None:
    plain = plan(folder, stages=STAGES)
    other = plan(folder, stages=STAGES, set={"pretrain.model.optimizer.lr": 1})
    assert plain.cells[0].final != other.cells[0].final
    assert plain.runs[plain.cells[0].final].config == other.runs[other.cells[0].final].config


def test_the_same_run_in_two_studies_or_two_cells_is_one(folder: Path) -> None:
    a = plan(folder, axes={"a": {"x": {}, "y": {"model.warm_start": False}, "z": {"model.warm_start": True}}}, seeds=2)
    assert len(a.runs) == 4
    assert a.notes == ["cells that are the same run: a=y = baseline"]
    b = plan(folder, name="other", set={"data.num_workers": 3, "trainer.strategy": "ddp"}, resources={"devices": 2})
    assert b.cells[0].final == a.cells[0].final
    assert b.runs[b.cells[0].final].resources.devices == 2
    others = (["fit"], ["fit", "tune", "test"], ["tune", "test", "trace"], ["fit", "test", "certify"])
    finals = {plan(folder, stages={"train": {"commands": commands}}).cells[0].final for commands in others}
    assert len(finals) == 4 and a.cells[0].final not in finals


def test_notes_say_which_paths_are_absent(folder: Path) -> None:
    made = plan(folder, set={"model.pretrained": "no/weights.pt"})
    (note,) = made.notes
    assert note.startswith("no file or folder at no/weights.pt: runs that read it fail where it is not; such a path")


# Mistakes.


def test_every_mistake_names_the_file_and_key_that_brought_it(folder: Path) -> None:
    (folder / "mri.yaml").write_text((folder / "mri.yaml").read_text().replace("epsilon:", "epsilonn:"))
    lines = refusal(
        folder,
        set={"trainer.max_epoch": 4, "model.reconstruction.prior.regularizer.widths": [8, "a"]},
        axes={
            "backward": {
                "implicit": {RULE: {"class_path": "Implicit", "init_args": {"setps": 3}}},
                "jfb": {RULE: "JacobianFre"},
            },
            f"{SOLVER}.tol": [0.1, "fast"],
            "x": {"a": {"model.reconstruction.strength.b": 3}, "b": {"pretrain.model.optimizr": 3}, "c": {}},
        },
        stages=STAGES,
    )
    for expected in (
        "mri.yaml: model.baselines.prior: Option 'epsilonn' is not accepted by TotalVariation, which takes epsilon",
        "study.yaml: set: trainer.max_epoch: unknown key; did you mean max_epochs?",
        "study.yaml: set: model.reconstruction.prior.regularizer.widths: expected int, got a",
        f"study.yaml: axes.backward.implicit: {RULE}: Option 'setps' is not accepted by Implicit, which takes",
        f"study.yaml: axes.backward.jfb: {RULE}: expected BackwardRule (Implicit, JacobianFree, OnlineImplicit, S",
        f"study.yaml: axes.{SOLVER}.tol[1]: {SOLVER}.tol: expected float, got fast",
        "study.yaml: axes.x.a: model.reconstruction.strength.b: expected model.reconstruction.strength to be a mapping",
        "study.yaml: axes.x.b: model: Option 'optimizr' is not accepted by DenoisingModule, which takes regularizer",
    ):
        assert any(line.startswith(expected) for line in lines), (expected, lines)
    assert len(lines) == 8, lines


def test_a_total_batch_must_be_divisible(folder: Path) -> None:
    (line,) = refusal(folder, resources={"devices": 4})
    assert "expected processes that divide batch_size 2, which is the total of a step, got 4" in line


def test_parts_that_disagree_with_the_whole_are_not_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = plan(folder, axes=AXES)
    assert right.notes == []
    parse = signatures.Argument.parse

    def wrong(self: signatures.Argument, value: Any) -> Any:
        return 12345 if self.key == "max_steps" else parse(self, value)

    monkeypatch.setattr(signatures.Argument, "parse", wrong)
    made = plan(folder, axes=AXES)
    assert made.notes == ["every configuration was parsed as a whole, because its parts gave other values"]
    assert len(made.runs) == 4
    lines = refusal(folder, axes=AXES | {"x": {"y": {"model.reconstruction.strength": "much"}}})
    assert lines == ["study.yaml: axes.x.y: model.reconstruction.strength: expected float, got much"]


# The file.


def test_a_plan_is_what_was_saved(folder: Path, tmp_path: Path) -> None:
    made = plan(folder, axes=AXES, stages=STAGES, seeds=2, resources={"minutes": 9}, profiles={"p": {"a": 1}})
    path = save_plan(made, tmp_path / "runs")
    assert path == tmp_path / "runs" / "studies" / "study" / "plan.json"
    loaded = load_plan(path.parent)
    runs = {digest: replace(run, config=None) for digest, run in made.runs.items()}
    assert replace(loaded, fingerprint={}) == replace(made, runs=runs, fingerprint={})
    assert [*loaded.runs] == [*made.runs]
    assert loaded.variants() == made.variants()
    assert str(tmp_path) not in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["plan.json"]
    for content in ("", "{", "[]", "{}", json.dumps(json.loads(path.read_text()) | {"runs": [[1]]})):
        path.write_text(content)
        with pytest.raises(StudyError, match="expected a plan, found a damaged file"):
            load_plan(path)
    path.write_text("{")
    assert not is_current(path, folder / "study.yaml")
    with pytest.raises(StudyError, match="expected a plan, got No such file"):
        load_plan(tmp_path)


def test_a_plan_is_current_until_something_changes(folder: Path, tmp_path: Path) -> None:
    weights = folder / "weights.safetensors"
    weights.write_bytes(b"1")
    made = plan(folder, set={"model.pretrained": str(weights)}, quick={"seeds": 1})
    path = save_plan(made, tmp_path / "runs")
    made_from = folder / "study.yaml"
    assert is_current(path, made_from)
    assert is_current(path.parent, made_from)
    assert not is_current(path, made_from, quick=True)
    assert not is_current(path, folder / "other.yaml")
    for file, content in ((weights, b"22"), (folder / "mri.yaml", b"a: 1"), (made_from, b"base: x")):
        before, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
        file.write_bytes(content)
        assert not is_current(path, made_from), file
        file.write_bytes(before)
        os.utime(file, ns=times)
        assert is_current(path, made_from), file
    content = json.loads(path.read_text())
    content["fingerprint"]["code"] = "other"
    path.write_text(json.dumps(content))
    assert not is_current(path, made_from)


def test_hashes_do_not_depend_on_the_process(folder: Path) -> None:
    path = write(folder, axes=AXES, stages=STAGES)
    code = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "from elder.ablation.planning.plan import make_plan\n"
        "from elder.ablation.planning.study import read_study\n"
        "print(*make_plan(read_study(sys.argv[1])).runs)"
    )
    command = [sys.executable, "-c", code, str(path)]
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout.split() == [*make_plan(read_study(path)).runs]
    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in done.stdout.split())


# Scale: counts, not times.


def test_each_value_is_in_one_of_few_cells(folder: Path) -> None:
    axes = {f"data.a{i}": [*range(10)] for i in range(3)}
    cells = cells_of(read_study(write(folder, axes=axes, include=[{"set": {"data.b": 1}, "name": "x"}])))
    few = covering(cells, 16)
    assert len(few) == 10
    assert len(set[tuple[str, str]]().union(*few)) == 31
    assert len(covering(cells, 3)) == 3
    assert covering([()], 3) == [()]


def test_the_cost_of_a_run_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "_WHOLE", 5)
    parsed = {}
    for n in (81, 625):
        study = read_study(write_study(tmp_path, "model", n))
        made = making._Making(study)
        assert len(made.plan().runs) == n
        parsed[n] = made.resolver.n_parsed
        assert made.n_whole == round(n**0.25)
    assert parsed[625] - parsed[81] == 4 * (5 - 3)  # one for each new value of the four axes


def test_what_runs_have_in_common_is_there_once(tmp_path: Path) -> None:
    made = make_plan(read_study(write_study(tmp_path, "model", 81)))
    configs = [run.config for run in made.runs.values()]
    for key in ("data", "trainer", "model.baselines", "model.scheduler"):
        assert len({id(trees.get(config, key)) for config in configs}) == 1, key
    assert isinstance(next(iter(made.runs.values())), Run)
