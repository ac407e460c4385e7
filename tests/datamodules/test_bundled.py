"""The bundled heads: what is where, that no test slice neighbors a training slice, and a cache that mends itself."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch

from elder.datamodules.base import VALIDATION, Item, Key
from elder.datamodules.bundled import SIZE, VOLUMES, BundledMRI, BundledParallelMRI, Head, cache_folder
from elder.datamodules.coils import Coils, birdcage
from elder.datamodules.sensitivity import Espirit
from elder.operators.elementary import Fourier
from elder.operators.masks import EquispacedFractionMask
from elder.operators.mri import CartesianMRI
from elder.operators.noise import Gaussian

ACQUISITION = CartesianMRI(EquispacedFractionMask([0.08], [4]), Gaussian(0.01))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BundledMRI:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = BundledMRI(ACQUISITION)
    data.prepare_data()
    return data


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def items(data: BundledMRI, split: str) -> list[Item]:
    part = getattr(data, f"{split}_data")
    return [part[Key(VALIDATION, i)] for i in range(len(part))]


def test_splits_of_the_head_are_apart() -> None:
    positions: dict[str, set[int]] = {"train": set(), "val": set(), "test": set()}
    for split, _, _, images in VOLUMES:
        if isinstance(images, Head):
            positions[split] |= set(range(images.start, images.stop))
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        assert min(abs(i - j) for i in positions[a] for j in positions[b]) == (6 if (a, b) == ("train", "test") else 2)
    assert positions["test"] == set(range(19, 24))


def test_images_are_as_described(data: BundledMRI) -> None:
    data.setup("fit")
    data.setup("test")
    splits = {split: items(data, split) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in splits.items()} == {"train": 28, "val": 3, "test": 6}
    names = [item.name for part in splits.values() for item in part]
    assert len(set(names)) == 37
    for item in splits["train"] + splits["val"] + splits["test"]:
        image = item.scene.image
        assert image is not None
        assert (image.shape, image.dtype) == ((1, *SIZE), torch.float32)
        assert image.min() >= 0
        assert (image > 0.1).float().mean() > 0.15  # anatomy, not noise alone
    for name in {name.split("/")[0] for name in names}:
        images = [i.scene.image for part in splits.values() for i in part if i.name.startswith(name)]
        assert float(torch.stack(images).max()) == pytest.approx(1, abs=1e-5)


def test_no_evaluated_image_is_nearly_a_training_image(data: BundledMRI) -> None:
    data.setup("fit")
    data.setup("test")

    def correlation(a: Item, b: Item) -> float:
        assert a.scene.image is not None
        assert b.scene.image is not None
        return float(torch.corrcoef(torch.stack((a.scene.image.flatten(), b.scene.image.flatten())))[0, 1])

    train = items(data, "train")
    assert correlation(train[3], train[14 + 3]) > 0.99  # the two repeats of a position
    for item in items(data, "val") + items(data, "test"):
        assert max(correlation(item, other) for other in train) < 0.99


def test_a_test_problem_is_a_simulated_one(data: BundledMRI) -> None:
    data.setup("test")
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
    assert [name for batch in batches for name in batch.names][-1] == "sagittal.h5/0"
    problem = batches[0].problem
    assert problem.x is not None
    residual = torch.view_as_real(problem.y - problem.A(problem.x))[(problem.y != 0)]
    assert float(residual.std()) == pytest.approx(0.01, rel=0.05)


def test_coils_see_the_same_heads(data: BundledMRI) -> None:
    parallel = BundledParallelMRI(ACQUISITION, coils=Coils(Espirit(threshold=5e-3)))
    parallel.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
        parallel.setup(stage)
    for split in ("train", "val", "test"):
        for one, eight in zip(items(data, split)[-2:], items(parallel, split)[-2:], strict=True):
            assert one.name == eight.name
            x, kspace, maps = eight.scene.image, eight.scene.kspace, eight.scene.maps
            assert one.scene.image is not None and x is not None and kspace is not None and maps is not None
            assert kspace.shape == maps.shape == (8, *SIZE) and x.is_complex()
            # the object's own phase turns along the columns, where that of the estimated coils leaves it alone
            first = Fourier().adjoint(kspace)[0] / birdcage(8, SIZE)[0]
            bright = one.scene.image[0] > 0.3
            torch.testing.assert_close(first.abs()[bright], one.scene.image[0][bright], atol=0.01, rtol=0)
            assert first.angle()[bright].std() > 0.1
            head = one.scene.image > 0.3
            torch.testing.assert_close(x.abs()[head], one.scene.image[head], atol=0.03, rtol=0)
            missed = Fourier()(maps * x) - kspace  # what the estimated sensitivities do not explain
            assert missed.norm() < 0.03 * kspace.norm()


def test_a_damaged_cache_is_mended(data: BundledMRI) -> None:
    whole = contents(cache_folder())
    assert len(whole) == len(VOLUMES)
    truncated, missing, foreign = (cache_folder() / name for name in list(whole)[:3])
    intact = cache_folder() / list(whole)[3]
    changed = intact.stat().st_mtime_ns
    truncated.write_bytes(truncated.read_bytes()[:-1])
    missing.unlink()
    foreign.write_bytes(b"")
    data.prepare_data()
    assert contents(cache_folder()) == whole
    assert intact.stat().st_mtime_ns == changed


def test_processes_may_write_the_cache_at_once(
    data: BundledMRI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(2)

    def prepare() -> None:
        start.wait(60)
        BundledMRI(ACQUISITION).prepare_data()

    processes = [fork.Process(target=prepare) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert contents(tmp_path / "shared" / "elder") == contents(tmp_path / "elder")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"expected a cache folder to write to.*set XDG_CACHE_HOME"):
        BundledMRI(ACQUISITION).prepare_data()
