"""Asynchronous hyperparameter tuning on a Dask cluster.

The public names are loaded when they are first used: a training script that imports `Reporter`
loads neither Dask nor pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dask_hpo.checkpoints.options import Checkpoints as Checkpoints
    from dask_hpo.core.space import SearchSpace as SearchSpace
    from dask_hpo.core.space import choice as choice
    from dask_hpo.core.space import lograndint as lograndint
    from dask_hpo.core.space import loguniform as loguniform
    from dask_hpo.core.space import ordinal as ordinal
    from dask_hpo.core.space import qlograndint as qlograndint
    from dask_hpo.core.space import qloguniform as qloguniform
    from dask_hpo.core.space import qrandint as qrandint
    from dask_hpo.core.space import quniform as quniform
    from dask_hpo.core.space import randint as randint
    from dask_hpo.core.space import uniform as uniform
    from dask_hpo.core.stopping import StoppingCriterion as StoppingCriterion
    from dask_hpo.experiment import Experiment as Experiment
    from dask_hpo.experiment import load_experiment as load_experiment
    from dask_hpo.objective import ScriptObjective as ScriptObjective
    from dask_hpo.report import Reporter as Reporter
    from dask_hpo.report import checkpoint_dir as checkpoint_dir
    from dask_hpo.schedulers import FIFOScheduler as FIFOScheduler
    from dask_hpo.searchers import GridSearcher as GridSearcher
    from dask_hpo.searchers import QuasiRandomSearcher as QuasiRandomSearcher
    from dask_hpo.searchers import RandomSearcher as RandomSearcher
    from dask_hpo.tuner import Tuner as Tuner

__version__ = "0.1.0"

_SPACE = "dask_hpo.core.space"
_HOMES = {
    **dict.fromkeys(("choice", "ordinal", "uniform", "quniform", "loguniform"), _SPACE),
    **dict.fromkeys(("qloguniform", "randint", "qrandint", "lograndint", "qlograndint"), _SPACE),
    "SearchSpace": _SPACE,
    "StoppingCriterion": "dask_hpo.core.stopping",
    "Experiment": "dask_hpo.experiment",
    "load_experiment": "dask_hpo.experiment",
    "ScriptObjective": "dask_hpo.objective",
    "Checkpoints": "dask_hpo.checkpoints.options",
    "Reporter": "dask_hpo.report",
    "checkpoint_dir": "dask_hpo.report",
    "FIFOScheduler": "dask_hpo.schedulers",
    "GridSearcher": "dask_hpo.searchers",
    "QuasiRandomSearcher": "dask_hpo.searchers",
    "RandomSearcher": "dask_hpo.searchers",
    "Tuner": "dask_hpo.tuner",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - names of the table above


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dask_hpo' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
