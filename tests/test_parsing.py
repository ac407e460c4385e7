"""An integer in a configuration is an integer, in whatever order a process has met the types."""

from __future__ import annotations

from typing import Literal, Optional, Union

import pytest

from elder.ablation.planning.signatures import Argument, of_class, of_command
from elder.parsing import ArgumentParser, ClassParser, integers_first


class Inner:
    def __init__(self, amount: Optional[Union[float, int]] = None, many: list[float | int] | None = None) -> None:  # noqa: UP007, UP045
        self.amount, self.many = amount, many


class Outer:
    def __init__(self, inner: Inner, amount: float | int | None = None, text: float | str | int = 0) -> None:
        self.inner, self.amount, self.text = inner, amount, text


VALUES = [(1, int), (0.5, float), (1.0, float)]


@pytest.mark.parametrize("parser", [ClassParser, ArgumentParser])
@pytest.mark.parametrize(("value", "kind"), VALUES)
def test_the_kind_of_a_number_is_kept(parser: type, value: float, kind: type) -> None:
    arguments = parser(exit_on_error=False)
    arguments.add_class_arguments(Outer, "outer")
    inner = {"class_path": f"{__name__}.Inner", "init_args": {"amount": value, "many": [value, 2]}}
    parsed = arguments.parse_object({"outer": {"inner": inner, "amount": value, "text": "a"}})
    made = arguments.instantiate_classes(parsed).outer
    assert [type(v) for v in (made.amount, made.inner.amount, *made.inner.many)] == [kind, kind, kind, int]
    assert made.text == "a"
    given = arguments.parse_args([f"--outer.amount={value}", f"--outer.inner={__name__}.Inner"])
    assert type(given.outer.amount) is kind


@pytest.mark.parametrize("parser", [ClassParser, ArgumentParser])
def test_null_reaches_the_argument_of_a_nested_class(parser: type) -> None:
    arguments = parser(exit_on_error=False)
    arguments.add_subclass_arguments(Outer, "outer")
    name = f"{__name__}.Outer"
    given = [f"--outer={name}", f"--outer.inner={__name__}.Inner", "--outer.inner.amount=1"]
    assert arguments.parse_args(given).outer.init_args.inner.init_args.amount == 1
    assert arguments.parse_args([*given, "--outer.inner.amount=null"]).outer.init_args.inner.init_args.amount is None


def test_planning_reads_numbers_like_main() -> None:
    trainer = of_command("fit")["trainer"]
    assert isinstance(trainer, dict)
    for value, kind in VALUES:
        assert type(trainer["limit_train_batches"].parse(value)) is kind
    owner = ClassParser(exit_on_error=False)
    owner.add_class_arguments(Outer, "outer")
    (action,) = (a for a in owner._actions if a.dest == "outer.inner")
    argument = Argument("outer.inner", owner, None, (Inner,), 0, False, {}, False, True)
    signature = of_class(argument, f"{__name__}.Inner")
    assert action is not None and signature is not None
    for value, kind in VALUES:
        assert type(signature.arguments["amount"].parse(value)) is kind


def test_only_the_order_of_numbers_changes() -> None:
    assert integers_first(float | str | int).__args__ == (int, str, float)
    assert integers_first(dict[str, float | int] | None).__args__[0].__args__[1].__args__ == (int, float)
    for hint in (int | float, float | None, str, Literal[1.5, 1], list, None):
        assert integers_first(hint) is hint
