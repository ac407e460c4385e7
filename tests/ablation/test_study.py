"""The YAML of a study: what is written is read, and nothing that is written is ignored."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from elder.ablation.planning.documents import read_yaml
from elder.ablation.planning.study import Resources, StudyError, read_study

WHOLE = """
base: [base.yaml, more.yaml]
set: {trainer.max_epochs: 4, pretrain.trainer.max_epochs: 9}
axes:
  backward:
    implicit: {model.backward: {class_path: Implicit}}
    jfb: {model.backward: JacobianFree}
  strength: {key: model.strength, values: [1e-2, 0.02]}
  model.optimizer.lr: [1.0e-3, null, true]
zip:
  - patch: {key: data.patch_size, values: [32, 64]}
    batch: {key: data.batch_size, values: [8, 2]}
variants: {plain: {}, wide: {model.prior: {class_path: Wide}}}
when: {strength: {backward: [jfb]}}
exclude: [{backward: implicit, variant: [wide, plain]}]
include: [{backward: jfb, set: {model.x: 3}, name: jfb-3}]
seeds: [3, 1]
baseline: {model.optimizer.lr: null, patch: 64}
metrics: {psnr: max, seconds: min}
stages:
  pretrain: {base: more.yaml, commands: [fit], set: {trainer.max_steps: 3}, resources: {minutes: 5}}
  train: {inputs: {model.pretrained: pretrain/regularizer.safetensors}}
resources: {devices: 2, memory_gb: 1.5, accelerator: cpu}
profile: mine
profiles: {mine: {partition: gpu}}
quick: {seeds: 1, set: {trainer.max_epochs: 1}, axes: {strength: {key: model.strength, values: [1]}}, when: {},
        exclude: [], include: [], zip: [], baseline: {}}
search: {trials: 5, parameters: {model.strength: {low: 1e-3, high: 1, log: true}, model.backward: {choices: [A, B]}}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text("trainer: {max_epochs: 1, max_steps: 2}\nmodel: {class_path: M}\n")
    (tmp_path / "more.yaml").write_text("trainer: {max_epochs: 3}\n")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def test_a_whole_study_is_read(folder: Path) -> None:
    study = read_study(write(folder, WHOLE))
    assert study.name == "study"
    assert [*study.axes] == ["backward", "strength", "model.optimizer.lr", "patch", "batch", "variant"]
    assert [len(group) for group in study.dimensions] == [1, 1, 1, 2, 1]
    assert [*study.axes["strength"].values] == ["0.01", "0.02"]
    assert [*study.axes["model.optimizer.lr"].values] == ["0.001", "null", "true"]
    (setting,) = study.axes["backward"].values["jfb"].values()
    assert (setting.key, setting.value, setting.place) == (
        "model.backward",
        "JacobianFree",
        f"{study.file}: axes.backward.jfb",
    )
    assert study.seeds == (3, 1)
    assert study.when == {"strength": {"backward": ("jfb",)}}
    assert study.exclude == ({"backward": ("implicit",), "variant": ("wide", "plain")},)
    assert study.include[0].coordinates == {"backward": "jfb"}
    assert study.baseline == {"model.optimizer.lr": "null", "patch": "64"}
    assert study.metrics == {"psnr": "max", "seconds": "min"}
    pretrain, train = study.stages
    assert pretrain.commands == ("fit",)
    assert train.commands == ("fit", "test")
    assert train.tree["trainer"] == {"max_epochs": 3, "max_steps": 2}  # the bases, from left to right
    assert pretrain.tree["trainer"] == {"max_epochs": 3}
    assert train.inputs == {"model.pretrained": ("pretrain", "regularizer.safetensors")}
    assert train.resources == Resources(devices=2, memory_gb=1.5, accelerator="cpu")
    assert pretrain.resources == Resources(devices=2, memory_gb=1.5, accelerator="cpu", minutes=5)
    assert (study.profile, study.profiles) == ("mine", {"mine": {"partition": "gpu"}})
    assert study.search is not None
    assert study.search.metric == "val/psnr"
    assert study.search.parameters["model.strength"] == {"low": 1e-3, "high": 1, "log": True}
    assert {path.name for path in study.texts} == {"study.yaml", "base.yaml", "more.yaml"}


def test_quick_replaces_keys_and_merges_set(folder: Path) -> None:
    study = read_study(write(folder, WHOLE), quick=True)
    assert study.name == "study-quick"
    assert study.seeds == (0,)
    assert [*study.axes] == ["strength", "variant"]
    assert {key: setting.value for key, setting in study.patch.items()} == {
        "trainer.max_epochs": 1,
        "pretrain.trainer.max_epochs": 9,
    }
    assert len(study.stages) == 2
    with pytest.raises(StudyError, match="expected a key `quick`, found none"):
        read_study(write(folder, "base: base.yaml"), quick=True)


def test_little_is_enough(folder: Path) -> None:
    study = read_study(write(folder, "base: base.yaml\nseeds: 3"))
    assert study.seeds == (0, 1, 2)
    assert study.metrics == {"psnr": "max", "ssim": "max"}
    assert [stage.name for stage in study.stages] == ["train"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 3", ": seed: unknown key; did you mean seeds?"),
        ("axis: {}", ": axis: unknown key; did you mean axes?"),
        ("name: a/b", ": name: expected a name of letters, digits"),
        ("seeds: 0", ": seeds: expected an integer >= 1, got 0"),
        ("seeds: [1, 1]", ": seeds: expected a number of seeds, or a list of seeds, each once, got [1, 1]"),
        ("seeds: [a]", ": seeds[0]: expected an integer >= 0, got 'a'"),
        ("seeds: true", ": seeds: expected an integer >= 1, got True"),
        ("axes: [a]", ": axes: expected axes by name, got ['a']"),
        ("axes: {a: {}}", ": axes.a: expected at least one value, got an empty axis"),
        ("axes: {m.a: []}", ": axes.m.a: expected at least one value, got an empty axis"),
        ("axes: {m.a: [1, 1]}", ": axes.m.a[1]: expected each value once, got 1 twice"),
        ("axes: {a: {x: 3}}", ": axes.a.x: expected a patch: values by dotted key, got 3"),
        ("axes: {a: {x: {m..b: 3}}}", ": axes.a.x.m..b: expected a dotted key, got 'm..b'"),
        ("axes: {a: {x: {m.b: 3, m.init_args.b: 4}}}", ": axes.a.x: expected each key once, got m.b in two spellings"),
        ("axes: {a: {x: {seed_everything: 3}}}", "seed_everything; list the seeds in `seeds`"),
        ("axes: {a: {x: {trainer.devices: 3}}}", "got trainer.devices; set `devices` in `resources`"),
        ("set: {run_dir: a}", "got run_dir; the folder of a run follows from its hash"),
        ("axes: {name: {x: {}}}", ": axes.name: expected another name, got 'name'"),
        ("axes: {variant: {x: {}}}\nvariants: {y: {}}", ": variants: expected each axis once, got variant twice"),
        ("variants: {}", ": variants: expected at least one variant"),
        (
            "zip: [{a: {key: m.a, values: [1, 2]}, b: {key: m.b, values: [1]}}]",
            ": zip[0]: expected two or more axes with equally many values, got a with 2, b with 1",
        ),
        ("zip: [{m.a: [1]}]", ": zip[0]: expected two or more axes"),
        ("axes: {a: {x: {}}}\nwhen: {b: {a: x}}", ": when.b: expected an axis, got 'b'; axes: a"),
        ("axes: {a: {x: {}}, b: {y: {}}}\nwhen: {b: {aa: x}}", ": when.b.aa: expected an axis, got 'aa'; did you mean"),
        ("axes: {a: {x: {}}, b: {y: {}}}\nwhen: {b: {a: z}}", ": when.b.a: expected a value of a (x), got 'z'"),
        ("axes: {a: {x: {}}, b: {y: {}}}\nwhen: {b: {b: y}}", ": when.b: expected a condition on other axes"),
        ("axes: {a: {x: {}}, b: {y: {}}}\nwhen: {b: {a: x}, a: {b: y}}", "expected conditions without circles"),
        ("axes: {a: {x: {}}}\nexclude: [{a: [z]}]", ": exclude[0].a[0]: expected a value of a (x), got 'z'"),
        ("axes: {a: {x: {}}}\nexclude: [{}]", ": exclude[0]: expected values by axis"),
        ("axes: {a: {x: {}}}\nwhere: [{a: x}]", ": where[0]: expected a patch `set` beside the values, got none"),
        ("axes: {a: {x: {}}}\nwhere: [{set: {b.c: 1}}]", ": where[0]: expected values by axis"),
        ("axes: {a: {x: {}}}\nwhere: [{a: z, set: {b.c: 1}}]", ": where[0].a: expected a value of a (x), got 'z'"),
        ("axes: {a: {x: {}}}\nwhere: [{a: x, set: {run_dir: 1}}]", ": where[0].set.run_dir: expected a key that a"),
        ("axes: {a: {x: {}}}\nexclude: {a: x}", ": exclude: expected a list of partial coordinates"),
        ("axes: {a: {x: {}}}\nbaseline: {c: x}", ": baseline.c: expected an axis, got 'c'; axes: a"),
        ("axes: {a: {first: {}}}\nbaseline: {a: frist}", "got 'frist'; did you mean first?"),
        ("axes: {a: {x: {}}}\ninclude: [{a: y}]", ": include[0].a: expected a value of a (x), got 'y'"),
        ("axes: {a: {x: {}}}\ninclude: [{set: {m.a: 1}}]", ": include[0]: expected a name for a cell with a patch"),
        ("metrics: {psnr: up}", ": metrics.psnr: expected max or min, got 'up'"),
        ("metrics: {pnsr: max}", ": metrics.pnsr: unknown key; did you mean psnr?"),
        ("metrics: {}", ": metrics: expected a metric and its direction"),
        ("resources: {gpus: 1}", ": resources.gpus: unknown key; did you mean cpus?"),
        ("resources: {devices: 0}", ": resources.devices: expected an integer >= 1, got 0"),
        ("resources: {memory_gb: -1}", ": resources.memory_gb: expected a positive number, got -1"),
        ("resources: {accelerator: abacus}", ": resources.accelerator: expected one of auto, cpu"),
        (
            "profile: slrum",
            ": profile: expected local, slurm, a name below `profiles`, or a YAML file, got 'slrum'; did",
        ),
        ("profile: no.yaml", "no.yaml: expected a YAML file, got No such file"),
        ("profiles: {a: 3}", ": profiles.a: expected a mapping, got 3"),
        ("stages: {trainer: {}}", ": stages.trainer: expected a name that is no key of a configuration"),
        ("stages: {commands: {}}", ": stages.commands: expected a name that is no key of a configuration"),
        ("stages: {train: {comands: [fit]}}", ": stages.train.comands: unknown key; did you mean commands?"),
        (
            "stages: {train: {commands: [fitt]}}",
            "commands[0]: expected one of fit, validate, test, predict, tune, trace, certify, got 'fitt'",
        ),
        ("stages: {a: {inputs: {m.x: b/f}}, b: {}}", ": stages.a.inputs.m.x: expected STAGE/FILE of an earlier stage"),
        ("stages: {a: {}, b: {inputs: {m.x: a/../f}}}", ": stages.b.inputs.m.x: expected STAGE/FILE with a file in"),
        ("stages: {a: {}, b: {}}", ": stages.a: expected a later stage to take an input from it, found none"),
        ("stages: {a: {base: no.yaml}}", "stages.a.base: "),
        ("search: {trials: 3}", ": search: expected `parameters`: a range by dotted key"),
        ("search: {parameters: {m.a: {low: 2, high: 1}}}", ": search.parameters.m.a: expected low < high, or choices"),
        ("search: {parameters: {m.a: {low: 0, high: 1, log: true}}}", "expected `log: true` with 0 < low"),
        ("search: {metric: test/psnr, parameters: {m.a: {choices: [1]}}}", ": search.metric: expected a metric of val"),
        ("quick: {names: a}", ": quick.names: unknown key"),
        ("seeds: 1\nseeds: 2", "line 3, column 1: expected YAML, found a mistake: the key 'seeds' stands there twice"),
        ("axes: {a: {x: {m.b: 1, m.b: 2}}}", "the key 'm.b' stands there twice"),
        ("axes: [", "expected YAML, found "),
    ],
)
def test_mistakes_name_the_file_and_the_key(folder: Path, text: str, expected: str) -> None:
    path = write(folder, f"base: base.yaml\n{text}\n")
    with pytest.raises(StudyError) as refused:
        read_study(path)
    message = str(refused.value)
    assert expected in message
    assert all(line.startswith(str(path)) for line in message.splitlines()), message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seeds: 1", "study.yaml: stages.train: expected a base configuration"),
        ("base: no.yaml", "base: "),
        ("base: list.yaml", "list.yaml: expected a mapping of keys, got [1]"),
        ("base: broken.yaml", "broken.yaml: line 2, column 1: expected YAML, found a mistake: "),
        ("base: twice.yaml", "the key 'a' stands there twice"),
        ("base: []", "base: expected a YAML file or a list of them"),
        ("base: 3", "base: expected a YAML file or a list of them, got 3"),
        ("- 1", "study.yaml: expected a mapping of keys, got [1]"),
        ("", "study.yaml: expected a mapping of keys, got nothing"),
    ],
)
def test_mistakes_in_what_a_study_stands_on(folder: Path, text: str, expected: str) -> None:
    (folder / "list.yaml").write_text("[1]")
    (folder / "broken.yaml").write_text("a: [")
    (folder / "twice.yaml").write_text("a: 1\na: 2")
    with pytest.raises(StudyError) as refused:
        read_study(write(folder, text))
    assert expected in str(refused.value)
    assert len(refused.value.mistakes) == 1


def test_all_mistakes_are_told_at_once_but_no_more_than_can_be_read(folder: Path) -> None:
    path = write(
        folder, "base: base.yaml\nseeds: 0\nmetrics: {x: max}\naxes: {a: {}, b: {y: {}}}\nbaseline: {a: x, c: x}"
    )
    with pytest.raises(StudyError) as refused:
        read_study(path)
    keys = [line.split(": ")[1] for line in refused.value.mistakes]
    assert keys == ["seeds", "metrics.x", "metrics", "axes.a", "baseline.c"]  # of axis a, one mistake is enough
    path.write_text("base: base.yaml\n" + "".join(f"x{i}: 1\n" for i in range(50)))
    with pytest.raises(StudyError) as refused:
        read_study(path)
    assert len(str(refused.value).splitlines()) == 21
    assert str(refused.value).endswith("… and 30 more")


def test_values_are_read_as_the_command_line_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    texts = ["1e-3", "1.0e-3", "1.", ".5", "-2E+3", "1_000", "0x10", "yes", "2026-01-02", "1:30", "null", "~", ".inf"]
    path.write_text("".join(f"k{i}: {text}\n" for i, text in enumerate(texts)))
    from jsonargparse import get_loader

    assert read_yaml(path) == get_loader("yaml")(path.read_text())
    assert read_yaml(path)["k0"] == 1e-3
    path.write_text("a: &x {b: 1}\nc: {<<: *x, d: 2}\n")
    assert read_yaml(path)["c"] == {"b": 1, "d": 2}


def test_reading_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys; from elder.ablation.planning.plan import load_plan, is_current; "
        "from elder.ablation.planning.study import read_study; read_study(sys.argv[1]); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'pytorch_lightning', 'wandb', 'jsonargparse')))"
    )
    path = write(folder, WHOLE)
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 0
