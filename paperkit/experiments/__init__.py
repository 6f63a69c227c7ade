"""Studies and their records.

A study is a grid of configurations and a function from one to metrics (`Study`, `run_study`); a
record is one finished run (`records_of`). What other machines ran is merged (`merge`).
"""

from paperkit.experiments.archive import records_of
from paperkit.experiments.cost import Cost
from paperkit.experiments.engines import Allotment
from paperkit.experiments.merging import merge
from paperkit.experiments.parameters import resolve
from paperkit.experiments.records import Record
from paperkit.experiments.running import run_study
from paperkit.experiments.study import RunContext, Study

__all__ = [
    "Allotment",
    "Cost",
    "Record",
    "RunContext",
    "Study",
    "merge",
    "records_of",
    "resolve",
    "run_study",
]
