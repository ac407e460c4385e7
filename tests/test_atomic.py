from __future__ import annotations

from pathlib import Path

import pytest

from elder.atomic import replace, replacing


def test_a_file_is_replaced_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    replace(path, "σ\n")
    with replacing(path) as part:
        part.write_text("new\n")
        assert path.read_text(encoding="utf-8") == "σ\n"
    assert path.read_text() == "new\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [None, "old"])
def test_a_failure_leaves_what_was_there(tmp_path: Path, old: str | None) -> None:
    path = tmp_path / "table.csv"
    if old is not None:
        replace(path, old)
    with pytest.raises(ZeroDivisionError), replacing(path) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == ({} if old is None else {path.name: old})


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
    assert path.read_text() == "first"  # whoever ends last
    assert list(tmp_path.iterdir()) == [path]
