"""The mathematics runs on plain torch: importing it loads no trainer and no tracker, not even through a dependency.

The static contracts (`lint-imports`) see the imports that elder's own files write; this test sees all of them.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_mathematics_loads_no_lightning() -> None:
    contracts = tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = (c for c in contracts if "pytorch_lightning" in c.get("forbidden_modules", ()))
    script = f"import sys, {', '.join(contract['source_modules'])}; print(*sys.modules, sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert set(contract["source_modules"]) <= set(loaded)
    assert not set(contract["forbidden_modules"]) & set(loaded)
