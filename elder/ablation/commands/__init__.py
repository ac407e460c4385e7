"""What `main.py ablate …` and `main.py submit …` do."""

from elder.ablation.commands.results import archive, dashboard, report, restore
from elder.ablation.commands.running import cancel, logs, plan, prune, retry, run, status
from elder.ablation.commands.searching import search, submit

__all__ = [
    "archive",
    "cancel",
    "dashboard",
    "logs",
    "plan",
    "prune",
    "report",
    "restore",
    "retry",
    "run",
    "search",
    "status",
    "submit",
]
