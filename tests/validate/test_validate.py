"""Tables judged from end to end."""

from __future__ import annotations

import csv
import json

import pytest

from autopar.cli import main
from autopar.show.validation import validation_report
from autopar.validate.validate import summary, validate
from tests.validate.rows import SMALL


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Five runs, one that ran out of memory, one too short to judge, one without heads."""
    path = tmp_path_factory.mktemp("tables") / "small.csv"
    rows = [SMALL | {"gbs": str(8 * n), "iter_time_s": str(0.05 * n)} for n in (1, 2, 4, 8, 16)]
    header = [*SMALL, "mem_kind", "mem_gib"]
    rows.append(SMALL | {"iter_time_s": "", "mem_kind": "OOM"})
    rows.append(SMALL | {"iter_time_s": "0.005"})
    rows.append(SMALL | {"heads": ""})
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, header, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def found(table):
    return summary(*validate([table]))


def test_every_row_is_accounted_for(found):
    assert found["rows"] == 8
    assert found["tables"]["small"]["count"] == 5
    assert found["refused"] == [{"table": "small.csv", "line": 9, "reason": "heads not published"}]


def test_order_within_a_model(found):
    """Longer steps are predicted longer, whatever the error."""
    assert found["models"]["small: GPT-small"]["rank"] == pytest.approx(1)
    table = found["tables"]["small"]
    assert table["rank_within_models"] == pytest.approx(1)
    assert table["pairs_beyond_ordered"] == table["pairs_beyond"] > 0


def test_memory_labels(found):
    """A model this small fits, whatever the label says."""
    memory = found["memory"]["small"]
    assert (memory["fits_right"], memory["fits_wrong"]) == (6, 0)
    assert (memory["oom_right"], memory["oom_wrong"]) == (0, 1)


def test_outliers_are_listed_with_their_configuration(found):
    errors = [abs(each["error"]) for each in found["outliers"]]
    assert all(error > 0.2 for error in errors)
    assert found["outliers"][0]["tp"] == 2


def test_report_names_refused_rows(found):
    report = validation_report(found)
    assert "5 step times of 8 rows" in report.verdict
    table = next(s for s in report.sections if s.title == "Not expressible").parts[0]
    assert table.rows == (("small.csv", "1", "heads not published", "9"),)


def test_command_line(table, capsys):
    assert main(["validate", str(table), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 8
    assert main(["validate", str(table)]) == 0
    assert "heads not published" in capsys.readouterr().out
    assert main(["validate", str(table) + ".missing"]) == 2
    assert "Traceback" not in capsys.readouterr().err
