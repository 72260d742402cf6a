"""autopar plans how to train a PyTorch model on many devices, and writes the program that does."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopar import errors
    from autopar.api import Workload, parallelize, plan
    from autopar.cluster import Cluster
    from autopar.heterogeneous import HeterogeneousCluster
    from autopar.public_plan import Plan, load_plan

__version__ = "0.1.0"
__all__ = [
    "Cluster",
    "HeterogeneousCluster",
    "Plan",
    "Workload",
    "errors",
    "load_plan",
    "parallelize",
    "plan",
]

# Loaded on first use: reading a plan must neither need nor wait for torch.
_HOMES = {
    "Cluster": "autopar.cluster",
    "HeterogeneousCluster": "autopar.heterogeneous",
    "Plan": "autopar.public_plan",
    "Workload": "autopar.api",
    "load_plan": "autopar.public_plan",
    "parallelize": "autopar.api",
    "plan": "autopar.api",
}

# The import system binds the module autopar.plan to the name of the function autopar.plan
# when the module is first loaded: load it now and free the name for __getattr__.
import_module("autopar.plan")
import_module("autopar.errors")
del globals()["plan"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
