"""The list of known cost models as a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autopar.show.parts import Section, Table
from autopar.show.report import Report
from autopar.show.units import size


def clusters_report(clusters: Sequence[Mapping[str, Any]]) -> Report:
    """One row per cluster; each has the fields of ``autopar.Cluster`` that are shown here."""
    rows = tuple(
        (
            cluster["name"],
            cluster["device"],
            size(cluster["memory_bytes"]),
            str(cluster["devices_per_node"]),
            "measured" if cluster["calibrated"] else "published",
            cluster["description"],
        )
        for cluster in clusters
    )
    columns = ("name", "device", "memory", "devices per node", "figures", "description")
    verdict = f"{len(rows)} cost models are known by name; a file made by calibrate works as well."
    command = "autopar calibrate -o this_host.json"
    return Report("clusters", verdict, (Section("Clusters", (Table(columns, rows),)),), (command,))
