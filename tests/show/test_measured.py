from __future__ import annotations

from autopar.show.measured import measured_report

RUN = {
    "step_seconds": [0.4, 0.2, 0.2],
    "losses": [3.5, 3.25, 3.0],
    "peak_memory_bytes": [1024**3, 2 * 1024**3],
    "predicted_step_seconds": 0.22,
    "predicted_memory_bytes": 1024**3,
}


def rows(run):
    return measured_report(run, "toy").sections[0].parts


def test_signed_errors_of_median_step_and_largest_rank():
    table, losses = rows(RUN)
    assert table.rows[0] == ("step", "220 ms", "200 ms", "+10 %")
    assert table.rows[1] == ("peak memory", "1.0 GiB", "2.0 GiB", "-50 %")
    assert losses.rows == (("loss", "3.5000 at step 1, 3.0000 at step 3"),)


def test_single_figures_and_nothing_measured():
    table, losses = rows(RUN | {"step_seconds": 0.1, "peak_memory_bytes": 0, "losses": []})
    assert table.rows[0][2] == "100 ms"
    assert table.rows[1][3] == "not measured"
    assert losses.rows == (("loss", "not reported"),)


def test_kinds_of_seconds_and_live_tensors_where_somebody_looked():
    split = {"computing": {"predicted_seconds": 0.1, "measured_seconds": 0.08}}
    table, _ = rows(RUN | {"split": split, "live_memory_bytes": 1024**3 // 2})
    assert [row[0] for row in table.rows] == ["step", "  computing", "live tensors", "peak memory"]
    assert table.rows[1][1:] == ("100 ms", "80.0 ms", "+25 %")
    assert table.rows[2][1:] == ("1.0 GiB", "512.0 MiB", "+100 %")
