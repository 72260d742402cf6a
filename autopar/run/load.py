"""Imports the program of a plan into the running process, for ``autopar.parallelize``."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from autopar.emit import write_program
from autopar.plan import Plan


def load_program(plan: Plan) -> ModuleType:
    """The emitted program of ``plan`` as a module: the same text that ``plan.emit`` writes."""
    name = f"autopar_program_{plan.plan_id}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.py"
        write_program(plan, path)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return module
