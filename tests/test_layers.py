"""What is imported with what, not even through a dependency: mathematics without a trainer, ablations without tensors.

The static contracts (`lint-imports`) see the imports that elder's own files write; these tests see all of them.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

import elder.ablation

ROOT = Path(__file__).parents[1]


def contract(name: str) -> dict[str, list[str]]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (found,) = (one for one in contracts if one["name"].startswith(name))
    return found


def loaded(modules: list[str]) -> set[str]:
    """All modules that a fresh interpreter has after importing some."""
    script = f"import sys, {', '.join(modules)}; print(*sys.modules, sep='\\n')"
    names = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert set(modules) <= set(names)
    return set(names)


def test_mathematics_loads_no_lightning() -> None:
    of = contract("Lightning stays out")
    assert not set(of["forbidden_modules"]) & loaded(of["source_modules"])


def test_only_the_check_of_configurations_loads_tensors() -> None:
    of = contract("Ablations know")
    (package,) = elder.ablation.__path__
    paths = (path.relative_to(ROOT).with_suffix("") for path in Path(package).rglob("*.py"))
    modules = {".".join(path.parts).removesuffix(".__init__") for path in paths}
    checking = {f"elder.ablation.planning.{name}" for name in ("signatures", "resolution", "making")}
    assert checking < modules
    assert not set(of["forbidden_modules"]) & loaded(sorted(modules - checking))
