"""Plans: what a study comes to, made with torch, kept in a file, and read from it without.

`make_plan` imports what the runs import, which takes seconds; all else here takes milliseconds.
"""

from __future__ import annotations

from elder.ablation.planning.runs import Cell, Plan, Run
from elder.ablation.planning.stored import is_current, load_plan, save_plan
from elder.ablation.planning.study import Resources, Study

__all__ = ["Cell", "Plan", "Resources", "Run", "is_current", "load_plan", "make_plan", "save_plan"]


def make_plan(study: Study) -> Plan:
    """The plan of a study, the configuration of each run checked against the signatures of its classes.

    Raises:
        StudyError: With every mistake that was found in any run, each with the file and key it comes from.
    """
    from elder.ablation.planning.making import make

    return make(study)
