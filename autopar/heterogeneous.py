"""Devices of two kinds that work on one step: which cost model holds for which ranks.

    {"schema_version": 1, "name": "old-and-new",
     "kinds": [{"cluster": "h100-80g", "devices": 8}, {"cluster": "a100-80g", "devices": 8}]}

The first ranks are on devices of the first kind, the others on those of the second. A ``cluster``
is a name or the path of a file, relative to this one.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from autopar.cluster import Cluster, check_schema, known_clusters, read_model
from autopar.errors import CostModelError


@dataclass(frozen=True)
class HeterogeneousCluster:
    """Devices of two kinds.

    Attributes:
        kinds: the cost model of each kind, in the order of the ranks.
        devices: how many devices of each kind there are.

    Raises:
        CostModelError: the kinds are not two, or their collectives are not of one backend.
    """

    name: str
    kinds: tuple[Cluster, ...]
    devices: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.kinds) != 2 or len(self.devices) != 2 or min(self.devices) < 1:
            raise CostModelError(
                f"{len(self.kinds)} kinds with {list(self.devices)} devices", where=self.name,
                expected="two kinds of device, and at least one device of each",
                hint="give the nearest two kinds, or the cost model of the slower one for all",
            )  # fmt: skip
        backends = sorted({kind.backend for kind in self.kinds})
        if len(backends) > 1:
            raise CostModelError(
                f"backends {' and '.join(backends)}", where=self.name,
                expected="one backend, by which all ranks communicate",
                hint="two kinds of GPU, or two kinds of CPU host",
            )  # fmt: skip

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a file as above.

        Raises:
            CostModelError: it, or a cost model that it names, is missing or not valid.
        """
        where = Path(path)
        data = read_model(where)
        check_schema(data, str(where), part="heterogeneous")
        return cls(
            data["name"],
            tuple(Cluster.load(_beside(where, kind["cluster"])) for kind in data["kinds"]),
            tuple(kind["devices"] for kind in data["kinds"]),
        )

    @property
    def description(self) -> str:
        """Of what, e.g. "8 x h100-80g and 8 x a100-80g"."""
        pairs = zip(self.devices, self.kinds, strict=True)
        return " and ".join(f"{count} x {kind.name}" for count, kind in pairs)

    @property
    def sha256(self) -> str:
        """Changes with any of the kinds, as 64 hex digits."""
        parts = [[kind.sha256 for kind in self.kinds], list(self.devices)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def load_cluster(name_or_path: str | os.PathLike[str]) -> Cluster | HeterogeneousCluster:
    """The cost model known by a name, or what a file describes: one kind of machine or two.

    Raises:
        CostModelError: no such model or file, or its content is not valid.
    """
    text = os.fspath(name_or_path)
    if text not in known_clusters() and "kinds" in read_model(Path(text)):
        return HeterogeneousCluster.load(text)
    return Cluster.load(text)


def _beside(file: Path, name: str) -> str:
    return name if name in known_clusters() else str(file.parent / name)
