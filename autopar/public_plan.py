"""The plan that users hold: the data of ``autopar.plan.Plan``, printable and executable."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

from autopar.errors import UsageError
from autopar.plan import Plan as PlanData
from autopar.show import report, to_fragment, to_text


@dataclass(frozen=True, repr=False)
class Plan(PlanData):
    """A plan that prints as a table and writes its own program."""

    @classmethod
    def of(cls, plan: PlanData) -> Plan:
        """The same decisions with the public methods."""
        return cls(**{field.name: getattr(plan, field.name) for field in fields(plan)})

    def __str__(self) -> str:
        return to_text(report(self))

    def __repr__(self) -> str:
        mesh = str(self.mesh).replace(" ", ", ")
        return f"<Plan {self.plan_id} of {self.model}: {mesh}, {self.schedule}>"

    def _repr_html_(self) -> str:
        return to_fragment(report(self))

    def emit(self, path: str | os.PathLike[str], model: str = "") -> None:
        """Writes the stand-alone training program of this plan.

        Args:
            path: the file to write.
            model: "module:function" or "file.py:function" that returns the workload;
                the one that the plan was made from if empty.

        Raises:
            UsageError: no model is given and the plan does not know its own.
        """
        workload = model or self.workload or _no_model(path)
        from autopar.emit import write_program  # here: a plan is read without an emitter

        write_program(self, path, model=workload)


def _no_model(path: str | os.PathLike[str]) -> str:
    raise UsageError(
        "no model to train",
        expected='model="module:function", the function that returns the workload',
        where=f"emit of {os.fspath(path)}",
        hint="autopar emit PLAN.json -o PROGRAM.py --model MODULE:FUNCTION",
    )


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Reads a plan that ``Plan.save`` wrote; torch is not imported.

    Raises:
        PlanFormatError: the file is missing, truncated, of another schema version,
            of wrong types, or was edited after it was written.
    """
    return Plan.load(path)
