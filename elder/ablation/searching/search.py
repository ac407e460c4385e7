"""Search: parameters of a study, chosen from declared ranges so that a validation metric becomes as good as it gets.

Optuna suggests (TPE), and the runs are those of any study: a trial is a cell, its runs have their hashes, and one that
is there already is not run again. A trial whose curve stays below the median of the others is *pruned*: its run is
asked to save and to stop, so that its state is `interrupted`; the journal says that it was pruned, and no search goes
on with it. The trials stand in the plan `studies/NAME-search`, of which `status`, `logs` and `report` can be asked.

All that a search knows is in its journal and in the folders of the runs: killed at any moment, it goes on with the
trials that it had begun. Nothing is tuned on test images: their metrics are refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elder.ablation.planning import trees
from elder.ablation.planning.documents import StudyError, value_name
from elder.ablation.planning.grid import Axis, Setting
from elder.ablation.running.executor import Ended, Executor
from elder.ablation.running.files import check_writable
from elder.ablation.running.folder import Liveness, RunFolder, State
from elder.ablation.running.interruptions import interruptions
from elder.ablation.running.manager import end
from elder.ablation.running.supervisor import CANCELLED, Supervisor
from elder.ablation.searching.overlays import write_overlays
from elder.ablation.searching.progress import best_of, curve, joined
from elder.ablation.searching.sharing import Share
from elder.ablation.searching.trials import Journal, check_metric, opened, suggest

if TYPE_CHECKING:
    import optuna

    from elder.ablation.planning.plan import Cell, Plan
    from elder.ablation.planning.study import Search, Study

__all__ = ["Best", "search"]

_HASH, _PARAMETERS, _PRUNED = "run", "parameters", "pruned"  # what is kept of a trial beside what Optuna keeps


@dataclass(frozen=True, slots=True)
class Best:
    """What a search has found.

    Attributes:
        trial: Its number.
        hash: Of its run.
        value: Of the metric.
        parameters: By dotted key.
        files: Overlays of the base configuration, by stage.
    """

    trial: int
    hash: str
    value: float
    parameters: Mapping[str, Any]
    files: Mapping[str, Path]


@dataclass(slots=True)
class _Active:
    """A trial whose runs are being made."""

    trial: optuna.Trial
    cell: Cell
    manager: Supervisor
    folder: RunFolder
    told: set[int]
    pruned: bool = False


def search(
    study: Study,
    root: Path,
    executor: Executor,
    report: Callable[[str], None] = lambda line: None,
    parallel: int = 4,
    retries: int = 2,
    interval: float = 0.5,
) -> Best | None:
    """Run the trials that are left of a study's search, and write what was best to `studies/NAME/best.yaml`.

    Args:
        study: With a `search`; its axes are left alone, and its first seed is taken.
        root: Folder of `store` and `studies`.
        executor: Runs the attempts.
        report: Called with a line for every event.
        parallel: Trials at once, at most: the more there are, the less a suggestion knows of the others.
        retries: How many failures of a run are made up for.
        interval: Seconds between two looks.

    Returns:
        The best trial, None if none was completed.

    Raises:
        ModuleNotFoundError: Without Optuna.
        ValueError: If the study has no search, or one that would be tuned on test images.
        RuntimeError: If another process searches.
    """
    if study.search is None:
        raise ValueError(f"{study.file}: expected a key `search` with ranges, found none")
    check_metric(study.search.metric)
    check_writable(root / "store")
    with opened(root / "studies" / study.name / "search.journal", study) as journal:
        searcher = _Searcher(study, study.search, root, executor, report, journal, retries)
        searcher.resume()
        with interruptions() as interrupts:
            while not interrupts and searcher.look(parallel):
                time.sleep(interval)
            if interrupts:
                end(executor, interrupts, report)
        return searcher.best()


class _Searcher:
    """What is being tried, and what is known."""

    def __init__(
        self,
        study: Study,
        given: Search,
        root: Path,
        executor: Executor,
        report: Callable[[str], None],
        journal: Journal,
        retries: int,
    ) -> None:
        self._study, self._given, self._root, self._report, self._journal = study, given, root, report, journal
        self._executor, self._retries = executor, retries
        self._ended: list[Ended] = []
        self._active: list[_Active] = []
        self._all: Plan | None = None
        self._liveness = Liveness(ask=executor.alive if executor.name == "slurm" else None)

    def resume(self) -> None:
        """Take up the trials that an earlier search has left."""
        from optuna.trial import TrialState

        for trial in self._journal.unfinished():
            if _PARAMETERS not in trial.user_attrs:  # it ended between two lines of the journal
                self._journal.study.tell(trial, state=TrialState.FAIL)
            else:
                self._report(f"trial {trial.number}: goes on")
                self._begin(trial, trial.user_attrs[_PARAMETERS])

    def look(self, parallel: int) -> bool:
        """Take in what has happened, and begin what there is room for; whether anything is left."""
        for active in [*self._active]:
            active.manager.look()
            self._follow(active)
            if not active.manager.left():
                self._finish(active)
        while self._due() and len(self._active) < parallel and self._room():
            trial = self._journal.ask()
            parameters = suggest(trial, self._given.parameters)
            trial.set_user_attr(_PARAMETERS, parameters)
            self._begin(trial, parameters)
        return bool(self._active) or self._due()

    def best(self) -> Best | None:
        """The best of the completed trials; its parameters are written as overlays."""
        import optuna

        done = self._journal.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if not done:
            self._report("no trial was completed")
            return None
        trial = self._journal.study.best_trial
        hash, parameters = trial.user_attrs[_HASH], trial.user_attrs[_PARAMETERS]
        assert trial.value is not None
        head = f"# {self._given.metric} {trial.value:.6g}: trial {trial.number} of {self._study.name}, run {hash}\n"
        plan = self._all or self._known()
        runs = next((cell.runs for cell in plan.cells if cell.final == hash), {}) if plan else {}
        files = write_overlays(self._root / "studies" / self._study.name, self._root / "store", runs, parameters, head)
        if plan:
            self._report(f"the trials: main.py ablate status {self._root / 'studies' / plan.name}")
        self._report(f"best: trial {trial.number} ({hash[:8]}), {self._given.metric} {trial.value:.4g}")
        for key, value in parameters.items():
            self._report(f"  {key}: {value_name(value)}")
        for file in files.values():
            self._report(f"  main.py fit --config BASE --config {file}")
        return Best(trial.number, hash, trial.value, parameters, files)

    def _due(self) -> bool:
        """Whether trials are left to be begun."""
        trials = self._journal.study.get_trials(deepcopy=False)
        return sum(_PARAMETERS in trial.user_attrs for trial in trials) < self._given.trials

    def _room(self) -> bool:
        return self._executor.capacity(self._study.stages[0].resources) > 0

    def _begin(self, trial: optuna.Trial, parameters: Mapping[str, Any]) -> None:
        """Plan the runs of a trial, and have them managed."""
        from optuna.trial import TrialState

        try:
            plan = self._plan(trial, parameters)
        except StudyError:
            self._journal.study.tell(trial, state=TrialState.FAIL)
            raise
        (cell,) = plan.cells
        trial.set_user_attr(_HASH, cell.final)
        run = plan.runs[cell.final]
        every = trees.get(run.config, "trainer.check_val_every_n_epoch") or 1
        self._journal.be_patient((run.max_epochs or 0) // every)
        runs = list(plan.runs.values())
        share, store = Share(self._executor, self._ended), self._root / "store"
        manager = Supervisor(plan, store, share, runs, self._retries, self._report, self._liveness)
        told = self._journal.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        active = _Active(trial, cell, manager, RunFolder(store / cell.final), set(told))
        self._report(f"trial {trial.number} ({cell.final[:8]}): {cell.label.partition(': ')[2]}")
        active.pruned = _PRUNED in trial.user_attrs or cell.final in self._pruned()  # and not gone on with
        status = active.folder.status()
        if active.pruned and (status is None or status.state is not State.DONE):
            self._follow(active)
            self._tell(active, None)
        else:
            self._active.append(active)

    def _plan(self, trial: optuna.Trial, parameters: Mapping[str, Any]) -> Plan:
        """The runs of a trial, one value of the axis `trial`; they are added to the plan of all trials."""
        from elder.ablation.planning.plan import make_plan, save_plan

        name, place = str(trial.number), f"{self._study.file}: search.parameters"
        values = {name: {key: Setting(key, value, place) for key, value in parameters.items()}}
        study = replace(self._study, name=f"{self._study.name}-search", dimensions=((Axis("trial", values),),))
        study = replace(study, when={}, exclude=(), include=(), baseline={}, seeds=self._study.seeds[:1], search=None)
        plan = make_plan(study)
        shown = ", ".join(f"{key.rpartition('.')[2]}={value_name(value)}" for key, value in parameters.items())
        plan.cells = [replace(cell, label=f"trial {name}: {shown}") for cell in plan.cells]
        self._all = joined(self._all or self._known(), plan)
        save_plan(self._all, self._root)
        return plan

    def _known(self) -> Plan | None:
        """The plan of the trials that earlier searches have begun."""
        from elder.ablation.planning.plan import load_plan

        try:
            plan = load_plan(self._root / "studies" / f"{self._study.name}-search")
        except StudyError:
            return None
        begun = {trial.user_attrs.get(_HASH) for trial in self._journal.study.get_trials(deepcopy=False)}
        plan.cells = [cell for cell in plan.cells if cell.final in begun]
        return plan

    def _follow(self, active: _Active) -> None:
        """Tell Optuna the curve, and stop a run that is not worth going on with."""
        for step, value in curve(active.folder, self._given.metric):
            if step not in active.told:
                active.told.add(step)
                active.trial.report(value, step)
        if not active.pruned and active.manager.left() and active.told and active.trial.should_prune():
            status = active.folder.status()
            if status is not None and status.state is State.RUNNING:
                active.pruned = True
                active.trial.set_user_attr(_PRUNED, True)
                active.folder.cancel()
                self._report(f"trial {active.trial.number}: below the median of the others, to be pruned")

    def _finish(self, active: _Active) -> None:
        """The runs of a trial have ended, one way or the other."""
        self._active.remove(active)
        self._follow(active)
        states = active.manager.counted()
        if states.keys() <= {State.DONE, State.STALE}:
            values = [value for _, value in curve(active.folder, self._given.metric)]
            self._tell(active, best_of(values, self._given.metric))
            return
        if states[CANCELLED] and active.cell.final in self._pruned():
            active.pruned = True
        self._tell(active, None)

    def _tell(self, active: _Active, value: float | None) -> None:
        from optuna.trial import TrialState

        trial = active.trial
        if value is not None:
            self._journal.study.tell(trial, value)
            self._report(f"trial {trial.number}: {self._given.metric} {value:.4g}")
        elif active.pruned:
            self._journal.study.tell(trial, state=TrialState.PRUNED)
            self._report(f"trial {trial.number}: pruned")
        else:
            self._journal.study.tell(trial, state=TrialState.FAIL)
            self._report(f"trial {trial.number}: without a value")

    def _pruned(self) -> set[str]:
        """Runs that are not gone on with."""
        from optuna.trial import TrialState

        trials = self._journal.study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
        stopped = {active.cell.final for active in self._active if active.pruned}
        return stopped | {trial.user_attrs[_HASH] for trial in trials if _HASH in trial.user_attrs}
