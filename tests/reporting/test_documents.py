"""What the program writes into a document stays between its marks."""

from __future__ import annotations

from pathlib import Path

import pytest

from elder.reporting.documents import replace, replace_between


def test_only_what_stands_between_the_marks_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("before\n<!-- a -->old\n<!-- b -->\nafter <!-- b -->\n")
    for text in ("new σ", "newer\n"):
        replace_between(path, "<!-- a -->", "<!-- b -->", text)
    assert path.read_text() == "before\n<!-- a -->\n\nnewer\n\n<!-- b -->\nafter <!-- b -->\n"


@pytest.mark.parametrize("text", ["", "<!-- a -->", "<!-- b -->", "<!-- b --> <!-- a -->"])
def test_a_document_without_the_marks_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.md"
    path.write_text(text)
    with pytest.raises(ValueError, match="expected the marks <!-- a --> and <!-- b -->"):
        replace_between(path, "<!-- a -->", "<!-- b -->", "new")
    assert path.read_text() == text


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    replace(path, "old")
    with pytest.raises(UnicodeEncodeError):
        replace(path, "new \ud800")
    assert path.read_text() == "old"
    replace(path, "new")
    assert path.read_text() == "new"
