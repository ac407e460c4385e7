"""Configuration trees: what is set is there, what is not set is shared, and no argument is changed."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from elder.ablation.planning.trees import TreeError, get, is_node, merge, plain_key, remove, same_class, set_key

TREE: dict[str, Any] = {
    "trainer": {"max_epochs": 3},
    "model": {
        "class_path": "Module",
        "init_args": {
            "solver": {"class_path": "LBFGS", "init_args": {"tol": 0.1, "max_steps": 5}},
            "rule": "Implicit",
            "baselines": {"total variation": {"strength": 1.0}},
            "loss": None,
        },
    },
}


@pytest.fixture(autouse=True)
def unchanged() -> Any:
    before = deepcopy(TREE)
    yield
    assert before == TREE


@pytest.mark.parametrize("key", ["model.solver.tol", "model.init_args.solver.tol", "model.solver.init_args.tol"])
def test_init_args_may_be_left_out(key: str) -> None:
    assert get(TREE, key) == 0.1
    changed = set_key(TREE, key, 0.2)
    assert get(changed, key) == 0.2
    assert changed == set_key(TREE, "model.init_args.solver.init_args.tol", 0.2)
    assert "init_args" not in changed["model"]["init_args"]
    assert plain_key(key) == "model.solver.tol"
    assert get(remove(changed, key), key) is None
    assert set_key(remove(TREE, key), key, 0.1) == TREE


def test_what_does_not_change_is_shared() -> None:
    changed = set_key(TREE, "model.solver.tol", 0.2)
    assert changed["trainer"] is TREE["trainer"]
    assert changed["model"]["init_args"]["baselines"] is TREE["model"]["init_args"]["baselines"]
    assert changed["model"] is not TREE["model"]
    value = {"class_path": "Picard", "init_args": {"steps": [1, 2]}}
    assert get(set_key(TREE, "model.solver", value), "model.solver") is value
    assert merge(TREE, {"trainer": {"max_epochs": TREE["trainer"]["max_epochs"]}}) is TREE
    assert remove(TREE, "model.nothing.here") is TREE


def test_the_class_decides_what_becomes_of_the_old_arguments() -> None:
    solver = {"class_path": "LBFGS", "init_args": {"memory": 3}}
    assert get(set_key(TREE, "model.solver", solver), "model.solver.init_args") == {
        "tol": 0.1,
        "max_steps": 5,
        "memory": 3,
    }
    longer = set_key(TREE, "model.solver", solver | {"class_path": "elder.solvers.LBFGS"})
    assert get(longer, "model.solver.tol") == 0.1
    other = set_key(TREE, "model.solver", {"class_path": "Picard", "init_args": {"max_steps": 1}})
    assert get(other, "model.solver") == {"class_path": "Picard", "init_args": {"max_steps": 1}}
    assert get(set_key(TREE, "model.solver", "LBFGS"), "model.solver") == "LBFGS"  # the name alone: nothing kept
    assert get(set_key(TREE, "model.solver", {"memory": 3}), "model.solver.memory") == 3
    assert get(set_key(TREE, "model.solver", {"memory": 3}), "model.solver.tol") == 0.1
    assert merge({"a": 1}, {"class_path": "Ridge"}) == {"class_path": "Ridge"}


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Ridge", "Ridge", True),
        ("Ridge", "elder.models.regularizers.ridge.Ridge", True),
        ("elder.models.regularizers.Ridge", "elder.models.regularizers.ridge.Ridge", True),
        ("torch.optim.Adam", "other.optim.Adam", False),
        ("elder.Ridge", "elderly.Ridge", False),
        ("Ridge", "elder.models.BigRidge", False),
    ],
)
def test_spellings_of_a_class(a: str, b: str, same: bool) -> None:
    assert same_class(a, b) is same_class(b, a) is same


def test_missing_nodes_are_added_and_names_become_nodes() -> None:
    assert get(set_key(TREE, "model.tolerance.target", 0.1), "model.tolerance") == {"target": 0.1}
    assert get(set_key(TREE, "model.loss.weight", 2), "model.loss") == {"weight": 2}
    assert get(set_key(TREE, "model.rule.tol", 2), "model.rule") == {"class_path": "Implicit", "init_args": {"tol": 2}}
    assert get(set_key(TREE, "model.baselines.total variation.strength", 2), "model.baselines") == {
        "total variation": {"strength": 2}
    }


@pytest.mark.parametrize("tree", [{"a": [1]}, {"a": 3}, {"a": "solvers/lbfgs.yaml"}])
def test_a_key_into_a_value_is_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(TreeError, match=r"a\.b\.c: expected a to be a mapping, got .*; set a as a whole"):
        set_key(tree, "a.b.c", 1)


def test_lists_and_nulls_replace() -> None:
    assert merge({"a": [1, 2]}, {"a": [3]}) == {"a": [3]}
    assert merge({"a": {"b": 1}}, {"a": None}) == {"a": None}
    assert merge({"a": 1, "b": 2}, {"b": 3}) == {"a": 1, "b": 3}


def test_nodes() -> None:
    assert is_node({"class_path": "A"})
    assert not is_node({"class_path": "A", "other": 1})
    assert not is_node({"class_path": 3})
    assert not is_node("A")
