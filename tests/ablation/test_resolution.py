"""What is resolved part by part is what the whole parser makes of it, and its digest knows what can change a result."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from elder.ablation.planning import identity, signatures, trees
from elder.ablation.planning.documents import read_yaml
from elder.ablation.planning.resolution import Part, Resolver
from elder.ablation.planning.signatures import RefusedError, parse_whole
from tests.runs import ROOT

CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path.parent.name != "overlays"]
RUNS = [path for path in CONFIGS if "model" in read_yaml(path)]
MRI = read_yaml(ROOT / "configs" / "mri.yaml")
STOP, PLUGIN = "pytorch_lightning.callbacks.EarlyStopping", "pytorch_lightning.plugins.TorchSyncBatchNorm"
STOPPING = {"class_path": STOP, "init_args": {"monitor": "val/psnr"}}
MODEL = ROOT / "weights" / "mri_wcrr" / "regularizer.safetensors"
SOLVER, RULE, DATA = "model.reconstruction.solver", "model.reconstruction.backward", "data.acquisition"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # paths in configurations are relative to it


@pytest.fixture(scope="module")
def resolver() -> Resolver:
    return Resolver()


def changed(*changes: tuple[str, Any], base: dict[str, Any] = MRI) -> dict[str, Any]:
    for key, value in changes:
        base = trees.set_key(base, key, value)
    return base


def digest(resolver: Resolver, config: dict[str, Any], command: str = "fit") -> bytes:
    part = resolver.resolve(command, config)
    assert not part.mistakes
    return part.digest


# Agreement with the whole parser.

GOOD = [
    [],
    [(SOLVER, "Anderson")],
    [(SOLVER, {"class_path": "Picard", "init_args": {"iteration": {"class_path": "GradientDescent"}}})],
    [(SOLVER, {"max_steps": 3}), (f"{SOLVER}.memory", 5)],
    [(SOLVER, {"class_path": "elder.solvers.bfgs.LBFGS"})],
    [(RULE, "JacobianFree"), (f"{RULE}.n_steps", 3)],
    [(RULE, {"class_path": "Implicit"})],
    [(f"{RULE}.solver", None)],
    [("model.optimizer", "torch.optim.SGD"), ("model.optimizer.lr", 1)],
    [("model.optimizer", None)],
    [("model.scheduler", None)],
    [("model.scheduler", {"class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau", "init_args": {"monitor": "a"}})],
    [("model.tolerance", {"target": 0.1})],
    [("model.tolerance", {})],
    [("model.reconstruction.evaluation", {"compile": "default", "dtype": "bfloat16"})],
    [("model.reconstruction.fidelity", "LeastSquares")],
    [("model.reconstruction.prior", {"class_path": "Ridge", "init_args": {"widths": [4], "potential": "Convex"}})],
    [("model.reconstruction.prior", "TotalVariation")],
    [("model.loss", "torch.nn.L1Loss")],
    [("model.baselines", None)],
    [("model.baselines.second", {"prior": "TotalVariation", "solver": "LBFGS"})],
    [("model.warm_start", True), ("model.pretrained", None)],
    [("trainer.callbacks", [STOPPING])],
    [("trainer.max_time", "00:01:00:00"), ("trainer.precision", "bf16-mixed"), ("trainer.limit_train_batches", 1)],
    [("trainer.strategy", "ddp"), ("trainer.devices", 2), ("checkpoint.monitor", "val/ssim")],
    [("data", {"class_path": "FastMRI", "init_args": {"root": "data/x", "image_size": [320, 320]}})],
    [(f"{DATA}.mask", {"class_path": "MagicMask", "init_args": {"center_fractions": [0.1], "accelerations": [2, 4]}})],
    [(f"{DATA}.noise.sigma", 0), ("seed_everything", 7), ("seed_everything", True)],
]


@pytest.mark.parametrize("path", RUNS, ids=[path.stem for path in RUNS])
@pytest.mark.parametrize("command", ["fit", "test"])
def test_every_configuration_is_what_the_whole_parser_makes_of_it(resolver: Resolver, path: Path, command: str) -> None:
    config = read_yaml(path)
    part = resolver.resolve(command, config)
    assert not part.mistakes
    assert part.value == parse_whole(command, config)


@pytest.mark.parametrize("changes", GOOD, ids=str)
def test_every_change_is_what_the_whole_parser_makes_of_it(resolver: Resolver, changes: list[tuple[str, Any]]) -> None:
    config = changed(*changes)
    try:
        expected = parse_whole("fit", config)
    except RefusedError as error:  # also a part of the agreement
        assert resolver.resolve("fit", config).mistakes, str(error)
        return
    part = resolver.resolve("fit", config)
    assert not part.mistakes
    assert part.value == expected


def test_most_of_these_changes_are_accepted() -> None:
    accepted = 0
    for changes in GOOD:
        try:
            parse_whole("fit", changed(*changes))
            accepted += 1
        except RefusedError:
            pass
    assert accepted >= len(GOOD) - 4


BAD = [
    ([("modle", {"a": 1})], "modle", "unknown key; did you mean model?"),
    ([("trainer.max_epoch", 3)], "trainer.max_epoch", "unknown key; did you mean max_epochs?"),
    ([("trainer.max_epochs", "many")], "trainer.max_epochs", "expected int, got many"),
    ([("model", None)], "model", "expected a value, got none"),
    ([("model.reconstructionn", 1)], "model.reconstructionn", "Option 'reconstructionn' is not accepted by Recon"),
    ([("model.class_path", "Reconstruct")], "model", "expected LightningModule (AdversarialModule, DenoisingModule"),
    ([(f"{SOLVER}.max_step", 3)], f"{SOLVER}.max_step", "Option 'max_step' is not accepted by LBFGS, which takes max_"),
    ([(f"{SOLVER}.max_steps", "few")], f"{SOLVER}.max_steps", "expected int, got few"),
    ([(SOLVER, "Ridge")], SOLVER, "expected Solver (Anderson, "),
    ([(SOLVER, "elder.models.regularizers.Ridge")], SOLVER, ""),
    ([(SOLVER, "elder.no.Where")], SOLVER, ""),
    ([(SOLVER, "Solver")], SOLVER, ""),
    ([(SOLVER, 3)], SOLVER, ""),
    ([("model.reconstruction.prior", "Rigde")], "model.reconstruction.prior", "expected Prior ("),
    ([(f"{DATA}.mask", {"class_path": "Gaussian"})], f"{DATA}.mask", "expected MaskFunction ("),
    ([(f"{DATA}.noise.sigma", "loud")], f"{DATA}.noise.sigma", "expected float; expected list, got loud"),
    (
        [("model.optimizer.rate", 3)],
        "model.optimizer.rate",
        "Option 'rate' is not accepted by Adam, which takes params",
    ),
    ([("model.optimizer.lr", "fast")], "model.optimizer.lr", "expected float"),
    ([("model.scheduler", "torch.optim.lr_scheduler.StepLR")], "model.scheduler", "step_size"),
    (
        [("model.baselines.second", {"prio": "TotalVariation"})],
        "model.baselines",
        "Option 'prio' is not accepted by Re",
    ),
    ([("trainer.callbacks", [{"class_path": "NoCallback"}])], "trainer.callbacks", "got NoCallback"),
    ([("trainer.precision", "half")], "trainer.precision", ""),
]


@pytest.mark.parametrize(("changes", "key", "text"), BAD, ids=str)
def test_both_refuse_the_same_mistakes(resolver: Resolver, changes: list[tuple[str, Any]], key: str, text: str) -> None:
    config = changed(*changes)
    with pytest.raises(RefusedError):
        parse_whole("fit", config)
    (mistake,) = resolver.resolve("fit", config).mistakes
    assert mistake.key == key
    assert text in mistake.text
    assert mistake.text.startswith(key.split(".")[0])
    assert len(mistake.text) < 320
    assert "Subclass types expect" not in mistake.text


def test_what_the_whole_parser_takes_no_notice_of_is_a_mistake_here(resolver: Resolver) -> None:
    for key, value in {"modle": {}, "model.reconstructionn": {}, "trainer.default_root_dir": "a"}.items():
        parse_whole("fit", changed((key, value)))
        (mistake,) = resolver.resolve("fit", changed((key, value))).mistakes
        assert mistake.key == key
        assert mistake.strict
    (mistake,) = resolver.resolve("fit", {**MRI, "trainer": 3}).mistakes
    assert "expected a mapping with some of accelerator, " in mistake.text


def test_all_mistakes_are_found(resolver: Resolver) -> None:
    config = changed((f"{SOLVER}.max_step", 3), (f"{SOLVER}.tol", "x"), (f"{RULE}.solver.tol", "y"), ("data.seed", "z"))
    keys = {mistake.key for mistake in resolver.resolve("fit", config).mistakes}
    assert keys == {f"{SOLVER}.max_step", f"{SOLVER}.tol", f"{RULE}.solver.tol", "data.seed"}


# Identity.


def test_the_spelling_does_not_count(resolver: Resolver) -> None:
    plain = digest(resolver, MRI)
    shuffled = json.loads(json.dumps(MRI, sort_keys=True))
    resolved = parse_whole("fit", MRI)
    spellings = [
        copy.deepcopy(MRI),
        shuffled,
        _shortened(copy.deepcopy(MRI)),
        resolved,
        _shortened(copy.deepcopy(resolved)),
        changed(("model.class_path", "elder.models.reconstruction_module.ReconstructionModule")),
        changed((f"{SOLVER}.class_path", "elder.solvers.LBFGS")),
        changed((f"{SOLVER}.class_path", "elder.solvers.bfgs.LBFGS")),
        changed((f"{SOLVER}.memory", 10), ("model.warm_start", False), ("trainer.max_steps", -1)),
        changed(("model.optimizer.betas", [0.9, 0.999]), ("model.loss", None)),
        changed((f"{SOLVER}.tol", "1e-3"), ("model.reconstruction.strength", 2e-2)),
    ]
    for i, config in enumerate(spellings):
        assert digest(Resolver(), config) == plain, i


def _shortened(tree: Any) -> Any:
    """Concrete classes of arguments that say which class they want, without `class_path`."""
    node = trees.get(tree, "model.reconstruction")
    if trees.is_node(node):
        tree["model"]["init_args"]["reconstruction"] = node["init_args"]
    return tree


def test_where_and_how_it_runs_does_not_count(resolver: Resolver) -> None:
    plain = digest(resolver, MRI)
    for key, value in {
        "run_dir": "elsewhere",
        "seed_everything": 5,
        "ckpt_path": "last",
        "trainer.devices": 4,
        "trainer.num_nodes": 2,
        "trainer.accelerator": "cpu",
        "trainer.strategy": "ddp",
        "trainer.logger": False,
        "trainer.enable_progress_bar": False,
        "trainer.enable_model_summary": False,
        "trainer.log_every_n_steps": 7,
        "trainer.profiler": "simple",
        "data.num_workers": 3,
    }.items():
        assert digest(resolver, changed((key, value))) == plain, key


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else name)
    else:
        yield key, value


def _others(value: Any) -> list[Any]:
    """Values that an argument might take in place of one."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1]
    if isinstance(value, list) and value:
        return [[_others(value[0])[0], *value[1:]], [*value, value[-1]]]
    plain = [3, 0.5, True, "other", "bf16-mixed", "norm", "warn", "link", "step", "00:01:00:00", ["a"], ["strength"]]
    classes = ["LeastSquares", "torch.nn.L1Loss", "MINRES", "Convex", "JacobianFree", STOP, PLUGIN]
    return [
        *plain,
        *({"class_path": path} for path in classes),
        [STOPPING],
        {"target": 0.5},
        {"weight": 1.0},
        {"compile": "default"},
    ]


@pytest.mark.parametrize("name", ["mri", "mri_denoiser"])
def test_every_leaf_counts_or_is_excluded_by_rule(name: str) -> None:
    resolver = Resolver()
    config = parse_whole("fit", read_yaml(ROOT / "configs" / f"{name}.yaml"))
    plain, counted, untouched = digest(resolver, config), set[str](), set[str]()
    assert resolver.resolve("fit", config).value == config
    for key, value in _leaves(config):
        if key.endswith("class_path"):
            continue
        tries = (resolver.resolve("fit", trees.set_key(config, key, other)) for other in _others(value))
        accepted = [*islice((part for part in tries if not part.mistakes), 2)]
        if not accepted:
            untouched.add(trees.plain_key(key))
        elif identity.counts(trees.plain_key(key)) and not key.endswith(".num_workers"):
            assert all((part.digest != plain) == (part.value != config) for part in accepted), key
            counted.add(trees.plain_key(key))
        else:
            assert all(part.digest == plain for part in accepted), key
    assert {"trainer.max_steps", "trainer.precision", "trainer.gradient_clip_val", "data.batch_size"} <= counted
    assert {"model.optimizer.lr", "model.scheduler.T_max", "data.seed", "checkpoint.monitor"} <= counted
    assert len(counted) > 60
    assert {"trainer.callbacks", "trainer.plugins"} <= counted
    assert not untouched


def test_callbacks_that_a_study_adds_count(resolver: Resolver) -> None:
    one, two = (digest(resolver, changed(("trainer.callbacks", [STOPPING] * n))) for n in (1, 2))
    assert len({digest(resolver, MRI), one, two}) == 3


def test_a_class_of_the_same_arguments_counts(resolver: Resolver) -> None:
    mask = {"class_path": "EquispacedFractionMask", "init_args": trees.get(MRI, f"{DATA}.mask.init_args")}
    assert digest(resolver, changed((f"{DATA}.mask", mask))) != digest(resolver, MRI)


def test_a_path_counts_by_what_is_there(tmp_path: Path) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "other" / "b.safetensors", tmp_path / "c.safetensors"]
    files[1].parent.mkdir()
    for path, content in zip(files, [b"1", b"1", b"2"], strict=True):
        path.write_bytes(content)
    resolver = Resolver()
    a, b, c = (digest(resolver, changed(("model.pretrained", str(path)))) for path in files)
    assert a == b != c
    named, copied = (digest(resolver, changed(("model.pretrained", path))) for path in ("mri_wcrr", str(MODEL)))
    assert named == copied  # a trained model counts as its weights
    absent = [str(tmp_path / "x" / "w.pt"), str(tmp_path / "y" / "w.pt"), str(tmp_path / "y" / "v.pt")]
    a, b, c = (digest(resolver, changed(("model.pretrained", path))) for path in absent)
    assert a == b != c
    assert resolver.paths.absent == absent
    data = {"class_path": "FastMRI", "init_args": {"acquisition": MRI["data"]["init_args"]["acquisition"]}}
    roots = [tmp_path / "first", tmp_path / "second", tmp_path / "third"]
    for root, size in zip(roots, [3, 3, 4], strict=True):
        (root / "train").mkdir(parents=True)
        (root / "train" / "v.h5").write_bytes(bytes(size))
    a, b, c = (digest(resolver, changed(("data", data), ("data.root", str(root)))) for root in roots)
    assert a == b != c


def test_the_digest_is_the_same_tomorrow(resolver: Resolver) -> None:
    part = resolver.resolve(
        "fit", {**MRI, "model": {"class_path": "DenoisingModule", "init_args": {"regularizer": "Ridge"}}}
    )
    again = Resolver().resolve("fit", json.loads(json.dumps(part.value)))
    assert isinstance(part, Part)
    assert again == part
    string, node = (digest(resolver, changed((SOLVER, value))) for value in ("Anderson", {"class_path": "Anderson"}))
    assert string == node
    assert identity.run_hash(("fit", "test"), bytes(32), 0, {"a": ("b", "c")}) == "37317809fc0baed6"


def test_an_argument_that_came_later_counts_once_it_is_set(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "penalty" in identity.LATER
    unset, null, other = (
        digest(resolver, config)
        for config in (MRI, changed(("model.penalty", None)), changed(("model.penalty", {"weight": 1.0})))
    )
    assert unset == null != other
    monkeypatch.setattr(identity, "LATER", frozenset())
    assert digest(Resolver(), MRI) != unset


# Cost.


def test_a_part_that_recurs_is_parsed_once() -> None:
    resolver = Resolver()
    resolver.resolve("fit", MRI)
    first = resolver.n_parsed
    assert first > 20
    resolver.resolve("fit", copy.deepcopy(MRI))
    assert resolver.n_parsed == first
    for i in range(20):
        for j in range(20):
            resolver.resolve("fit", changed((f"{SOLVER}.tol", 0.1 + i), ("model.optimizer.lr", 0.1 + j)))
    assert resolver.n_parsed == first + 40


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elder.ablation.planning.resolution._KEPT", 30)
    resolver, plain = Resolver(), Resolver()
    for i in range(40):
        config = changed((f"{SOLVER}.tol", 0.1 + i % 7))
        assert resolver.resolve("fit", config) == plain.resolve("fit", config)
        assert len(resolver._shared) <= 30


def test_the_parser_is_that_of_the_command_line() -> None:
    assert set(signatures.of_command("fit")) >= {"seed_everything", "trainer", "model", "data", "run_dir", "checkpoint"}
    assert signatures.required_by("fit") == {"model", "data"}
