"""Launches what is not done of a study, and sees it through.

Several managers may work on one study: each run is claimed by one of them, and the others watch it, and take it over
when its process is gone. All that a manager knows is in the folders of the runs, so that it may be killed at any time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from elder.ablation.running.executor import Executor
from elder.ablation.running.files import check_writable
from elder.ablation.running.folder import Liveness
from elder.ablation.running.interruptions import interruptions
from elder.ablation.running.selection import selected
from elder.ablation.running.supervisor import Supervisor

if TYPE_CHECKING:
    from elder.ablation.planning.runs import Plan

__all__ = ["end", "manage"]


def manage(
    plan: Plan,
    store: Path,
    executor: Executor,
    only: str | None = None,
    retries: int = 2,
    report: Callable[[str], None] = lambda line: None,
    liveness: Liveness | None = None,
    interval: float = 0.2,
) -> Counter[str]:
    """Launch what is not done of a plan, and wait until nothing is left that can be done.

    SIGINT and SIGTERM end it: what ends with the manager is asked to save, and waited for; the second one ends it at
    once. What a scheduler keeps goes on.

    Args:
        plan: The runs, in an order in which each comes after those that it needs.
        store: The folder of the folders of runs.
        executor: Runs the attempts.
        only: A part of the name of the runs to launch, or a pattern with `*`; those that they need are launched too.
        retries: How many failures of a run are made up for.
        report: Called with a line for every event.
        liveness: Tells whether the runs of others are alive.
        interval: Seconds between two looks, or more where a look takes longer.

    Returns:
        How many runs are in which state at the end: those of `State`, `blocked` and `cancelled`.

    Raises:
        OSError: If the store cannot be written to; nothing was launched.
        ValueError: If nothing matches `only`.
    """
    check_writable(store)
    liveness = liveness or Liveness(ask=executor.alive if executor.name == "slurm" else None)
    supervisor = Supervisor(plan, store, executor, selected(plan, only), retries, report, liveness)
    with interruptions() as interrupts:
        while supervisor.left() and not interrupts:
            begun = time.monotonic()
            supervisor.look()
            # Of one processor, looking takes a quarter at most, however many runs there are.
            if supervisor.left() and not interrupts:
                time.sleep(max(interval, 3 * (time.monotonic() - begun)))
        if interrupts:
            end(executor, interrupts, report)
    return supervisor.counted()


def end(executor: Executor, interrupts: list[int], report: Callable[[str], None]) -> None:
    """End what ends with the manager: it may save first, unless somebody insists."""
    if executor.attached():
        report(f"stopping {executor.attached()} runs, which save what they have reached; once more to kill them")
    executor.stop()
    while executor.attached() and len(interrupts) == 1:
        executor.poll()
        time.sleep(0.1)
    if executor.attached():
        executor.kill()
        report("killed")
