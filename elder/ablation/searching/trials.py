"""The trials of a search, as Optuna keeps them in a journal: a file that is only appended to.

One process at a time works with a journal; the system releases its lock whatever ends the process. What the sampler
suggests for a trial follows from the seed and from the trials before it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elder.ablation.planning.study import Search, Study
from elder.reporting.tables import RESULT_FIELDS

if TYPE_CHECKING:
    import optuna

__all__ = ["Journal", "check_metric", "direction", "opened", "suggest"]

MAXIMIZED = ("psnr", "ssim")
_STARTUP = 5  # trials that are never pruned, and that are drawn at random


def check_metric(metric: str) -> None:
    """Refuse to tune on test images.

    Raises:
        ValueError: If the metric is not a curve of `metrics.jsonl`, or one of a test.
    """
    if metric in RESULT_FIELDS or metric.startswith("test/") or "/" not in metric:
        raise ValueError(
            f"search.metric: expected a curve of training or validation such as val/psnr, got {metric}; "
            "nothing is tuned on test images"
        )


def direction(metric: str) -> str:
    """PSNR and SSIM are maximized, everything else is minimized."""
    return "maximize" if metric.rpartition("/")[2] in MAXIMIZED else "minimize"


@dataclass(frozen=True, slots=True)
class Journal:
    """An open journal.

    Attributes:
        study: Of Optuna.
        seed: Of the sampler.
    """

    study: optuna.Study
    seed: int

    def ask(self) -> optuna.Trial:
        """A new trial."""
        import optuna

        count = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=_STARTUP, seed=self.seed + count)
        return self.study.ask()

    def be_patient(self, validations: int) -> None:
        """Let no trial be pruned in the first quarter of its validations, nor by its first."""
        import optuna

        self.study.pruner = optuna.pruners.MedianPruner(_STARTUP, n_warmup_steps=max(1, validations // 4))

    def unfinished(self) -> list[optuna.Trial]:
        """Trials that a searcher has left, which ended before they did."""
        import optuna

        running = self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        return [optuna.Trial(self.study, trial._trial_id) for trial in running]


@contextlib.contextmanager
def opened(path: Path, study: Study) -> Iterator[Journal]:
    """The journal of the search of a study.

    A search whose ranges, metric or base configurations were changed begins anew in the same file.

    Raises:
        ModuleNotFoundError: Without Optuna, with the command that installs it.
        RuntimeError: If another process works with it.
    """
    optuna = _optuna()
    search = study.search
    assert search is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RuntimeError(
                f"{path}: expected a journal that nobody else works with, got one that another search has open; "
                "wait for it, or end it"
            ) from None
        _mend(path)
        backend = optuna.storages.journal.JournalFileBackend(str(path), lock_obj=_NoLock())
        yield Journal(
            optuna.create_study(
                study_name=f"{study.name}-{_digest(study, search)}",
                storage=optuna.storages.JournalStorage(backend),
                direction=direction(search.metric),
                load_if_exists=True,
            ),
            study.seeds[0],
        )


def suggest(trial: optuna.Trial, parameters: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A value for every parameter, by dotted key."""
    return {key: _suggest(trial, key, given) for key, given in parameters.items()}


def _suggest(trial: optuna.Trial, key: str, given: Mapping[str, Any]) -> Any:
    if "choices" in given:
        labels = {json.dumps(choice): choice for choice in given["choices"]}  # a choice may be a whole node
        return labels[trial.suggest_categorical(key, list(labels))]
    low, high, log, step = given["low"], given["high"], bool(given.get("log")), given.get("step")
    if isinstance(low, int) and isinstance(high, int) and not isinstance(step, float):
        return trial.suggest_int(key, low, high, step=step or 1, log=log)
    return trial.suggest_float(key, low, high, step=step, log=log)


class _NoLock:
    """The journal is locked as a whole."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _mend(path: Path) -> None:
    """Remove the beginning of a line that a kill has left at the end."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)


def _digest(study: Study, search: Search) -> str:
    """Of all that a trial's value depends on beside its parameters."""
    content = {
        "stages": [[s.name, s.commands, s.tree, _values(s.patch), s.inputs] for s in study.stages],
        "set": _values(study.patch),
        "seed": study.seeds[0],
        "metric": search.metric,
        "parameters": search.parameters,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _values(patch: Mapping[str, Any]) -> dict[str, Any]:
    return {key: setting.value for key, setting in patch.items()}


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"search: expected the package optuna, found no {error.name}; install it with pip install 'elder[search]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
