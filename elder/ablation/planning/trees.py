"""Configuration trees: dicts of dicts, in which a node with `class_path` is a class and its arguments.

Nothing is changed in place: a new tree shares with the old one every sub-tree that is the same in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["TreeError", "get", "is_node", "merge", "plain_key", "remove", "same_class", "set_key"]

_NODE = {"class_path", "init_args", "dict_kwargs"}
_MISSING = object()


class TreeError(ValueError):
    """A key that leads into a value that has no keys."""


def is_node(value: object) -> bool:
    """Whether a value names a class and its arguments."""
    return isinstance(value, Mapping) and isinstance(value.get("class_path"), str) and value.keys() <= _NODE


def same_class(a: str, b: str) -> bool:
    """Whether two class paths can mean one class: `Ridge`, `package.Ridge` and `package.module.Ridge` can."""
    (module_a, _, name_a), (module_b, _, name_b) = a.rpartition("."), b.rpartition(".")
    short, long = sorted((f"{module_a}.".lstrip("."), f"{module_b}.".lstrip(".")), key=len)
    return name_a == name_b and long.startswith(short)


def get(tree: Any, key: str, default: Any = None) -> Any:
    """The value at a dotted key, or the default; `init_args` may be left out of the key."""
    for name in key.split("."):
        tree = _inner(tree, name)
        if not isinstance(tree, Mapping) or name not in tree:
            return default
        tree = tree[name]
    return tree


def set_key(tree: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The tree with a value set at a dotted key, missing nodes on the way added.

    A mapping is merged into what is there (see `merge`); anything else, also an empty one or the name of a class, takes
    its place.

    Raises:
        TreeError: If the key leads into a number, a list or the path of a file.
    """
    return _set(tree, key.split("."), value, key)


def remove(tree: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The tree without the value at a dotted key; the same tree where there is none."""
    if get(tree, key, _MISSING) is _MISSING:
        return tree if isinstance(tree, dict) else dict(tree)
    name, _, rest = key.partition(".")
    if (inner := _inner(tree, name)) is not tree:
        return {**tree, "init_args": remove(inner, key)}
    if not rest:
        return {k: v for k, v in tree.items() if k != name}
    return {**tree, name: remove(tree[name], rest)}


def merge(base: Any, overlay: Any) -> Any:
    """The overlay on the base: mappings key by key; lists, values and nodes of another class as a whole."""
    if base is overlay or not isinstance(base, Mapping) or not isinstance(overlay, Mapping):
        return overlay
    if is_node(base):
        if is_node(overlay):
            if not same_class(base["class_path"], overlay["class_path"]):
                return overlay
        elif not overlay.keys() & _NODE:  # arguments alone
            overlay = {"init_args": overlay}
    elif is_node(overlay):
        return overlay
    changed = {k: merge(base[k], v) if k in base else v for k, v in overlay.items()}
    if all(k in base and base[k] is v for k, v in changed.items()):
        return base
    return {**base, **changed}


def plain_key(key: str) -> str:
    """A dotted key without `init_args`, one spelling for each place."""
    return ".".join(name for name in key.split(".") if name != "init_args")


def _set(tree: Any, names: list[str], value: Any, key: str) -> Any:
    if not names:
        return merge(tree, value) if value else value
    if tree is None:
        tree = {}
    elif isinstance(tree, str) and not tree.endswith((".yaml", ".yml", ".json")):
        tree = {"class_path": tree}
    if not isinstance(tree, Mapping):
        place = key.removesuffix("." + ".".join(names))
        raise TreeError(f"{key}: expected {place} to be a mapping, got {tree!r}; set {place} as a whole")
    name = names[0]
    if is_node(tree) and name not in _NODE:
        return {**tree, "init_args": _set(tree.get("init_args"), names, value, key)}
    return {**tree, name: _set(tree.get(name), names[1:], value, key)}


def _inner(tree: Any, name: str) -> Any:
    """Where a name is looked up: in the arguments of a node, else in the mapping itself."""
    return tree.get("init_args", {}) if is_node(tree) and name not in _NODE else tree
