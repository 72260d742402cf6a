from __future__ import annotations

from autopar.show.clusters import clusters_report


def test_one_row_per_cluster():
    cluster = {
        "name": "h100-80g",
        "device": "H100",
        "memory_bytes": 80 * 1024**3,
        "devices_per_node": 8,
        "calibrated": False,
        "description": "DGX",
    }
    built = clusters_report([cluster])
    (table,) = built.sections[0].parts
    assert table.rows == (("h100-80g", "H100", "80.0 GiB", "8", "published", "DGX"),)
    assert built.verdict.startswith("1 cost models")
