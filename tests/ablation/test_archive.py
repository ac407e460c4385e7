"""Studies in one file: packed here, reported there."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from elder.ablation.comparing.results import collect
from elder.ablation.comparing.tables import runs_csv, table_csv
from elder.ablation.planning.runs import Plan, Run
from elder.ablation.planning.stored import load_plan, save_plan
from elder.ablation.planning.study import Resources
from elder.ablation.running.archive import pack, unpack
from elder.ablation.running.folder import RunFolder, State
from elder.reporting.metrics_file import STEPS_KEPT
from tests.ablation.comparisons import make_plan, write_study


def finished(root: Path) -> Plan:
    """A study of six runs, with its plan."""
    plan = write_study(root, make_plan(seeds=1))
    runs = {c.final: Run(c.final, "", "train", ("fit", "test"), 0, (), {}, None, Resources(), 2, 4) for c in plan.cells}
    plan = replace(plan, runs=runs)
    save_plan(plan, root)
    return plan


def packed(root: Path, name: str = "study.tar.xz") -> Path:
    plan = finished(root)
    path = root / name
    assert pack(path, root / "studies" / plan.name, [root / "store" / run for run in sorted(stored(root))]) == 6
    return path


def stored(root: Path) -> set[str]:
    return {path.name for path in (root / "store").iterdir()}


def test_what_was_packed_is_reported_elsewhere_as_it_was_here(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    put, left = unpack(packed(here), there)
    assert set(put) == stored(here) == stored(there) and left == []
    plan = load_plan(there / "studies" / "backward")
    assert table_csv(collect(plan, there)) == table_csv(collect(plan, here))
    assert runs_csv(collect(plan, there)) == runs_csv(collect(plan, here))
    assert all(RunFolder(there / "store" / run).status().state is State.DONE for run in put)  # type: ignore[union-attr]


def test_weights_pictures_and_logs_stay_behind_and_steps_are_thinned(tmp_path: Path) -> None:
    plan = finished(tmp_path)
    folder = tmp_path / "store" / plan.cells[0].final
    lines = [{"step": k, "train/loss": 1.0} for k in range(3 * STEPS_KEPT)] + [{"step": 9, "val/psnr": 30.0}]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for name in ("regularizer.safetensors", "images.h5", "log.txt"):
        (folder / name).write_bytes(bytes(100))
    pack(tmp_path / "a.tar.xz", tmp_path / "studies" / plan.name, [folder])
    unpack(tmp_path / "a.tar.xz", tmp_path / "there")
    copy = tmp_path / "there" / "store" / folder.name
    assert {path.name for path in copy.rglob("*.*")} == {
        "provenance.json", "status.json", "results.csv", "metrics.jsonl"
    }  # fmt: skip
    kept = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert len(kept) == STEPS_KEPT + 1 and kept[-1] == {"step": 9, "val/psnr": 30.0}
    assert (copy / "results.csv").read_bytes() == (folder / "results.csv").read_bytes()


def test_changes_of_the_code_come_along_and_paths_of_the_machine_stay_behind(tmp_path: Path) -> None:
    plan = finished(tmp_path)
    folder = tmp_path / "store" / plan.cells[0].final
    command = {"arguments": ["/opt/python/bin/python3", "/somewhere/elder/main.py", "fit", "--config", "runs/a.yaml"]}
    (folder / "provenance.json").write_text(json.dumps([{"attempt": 1, "commands": [command]}, {"attempt": 2}]))
    (folder / "attempts").mkdir(exist_ok=True)
    for number, diff in (("0001", "+ mended\n"), ("0002", "")):
        (folder / "attempts" / f"{number}.diff").write_text(diff)
    pack(tmp_path / "a.tar.xz", tmp_path / "studies" / plan.name, [folder])
    unpack(tmp_path / "a.tar.xz", tmp_path / "there")
    copy = tmp_path / "there" / "store" / folder.name
    first, second = json.loads((copy / "provenance.json").read_text())
    assert first["commands"][0]["arguments"] == ["python3", "main.py", "fit", "--config", "runs/a.yaml"]
    assert second == {"attempt": 2}
    assert [path.name for path in (copy / "attempts").glob("*.diff")] == ["0001.diff"]
    assert "/somewhere" in (folder / "provenance.json").read_text()


def test_runs_that_are_there_are_left_as_they_are(tmp_path: Path) -> None:
    path = packed(tmp_path / "here")
    first, *others = sorted(stored(tmp_path / "here"))
    mine = tmp_path / "there" / "store" / first / "results.csv"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    put, left = unpack(path, tmp_path / "there")
    assert (put, left) == (others, [first]) and mine.read_text() == "mine"
    assert [*mine.parent.iterdir()] == [mine]
    assert unpack(path, tmp_path / "there") == ([], [first, *others])


def test_equal_records_make_equal_bytes(tmp_path: Path) -> None:
    first, second = packed(tmp_path), tmp_path / "second.tar.xz"
    runs = [tmp_path / "store" / run for run in stored(tmp_path)]
    pack(second, tmp_path / "studies" / "backward", reversed(runs))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", ["../evil", "store/../../evil", "elsewhere/a/b", "store/only"])
def test_files_that_belong_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        member = tarfile.TarInfo(name)
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(ValueError, match="expected records of runs, got"):
        unpack(path, tmp_path / "there")
    assert not (tmp_path / "there").exists() and not (tmp_path / "evil").exists()


def test_another_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.xz"
    damaged = bytearray(packed(tmp_path / "here").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    for content in (b"no archive", bytes(damaged)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.tar\.xz: expected a \.tar\.xz of runs"):
            unpack(path, tmp_path)


def test_a_pack_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = packed(tmp_path)
    before = path.read_bytes()
    with pytest.raises(FileNotFoundError):
        pack(path, tmp_path / "studies" / "missing", [])
    assert path.read_bytes() == before


def test_a_restore_that_fails_in_its_midst_leaves_no_run(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        for name in ("status.json", "results.csv", "results.csv/in the way"):
            archive.addfile(tarfile.TarInfo(f"store/run/{name}"))
    with pytest.raises(OSError, match="in the way"):
        unpack(path, tmp_path / "there")
    assert not [*(tmp_path / "there").iterdir()]
