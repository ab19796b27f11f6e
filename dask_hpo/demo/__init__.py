"""The demo: asynchronous random search over a real training script, on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dask_hpo.core.space import loguniform, randint
from dask_hpo.core.stopping import StoppingCriterion
from dask_hpo.experiment import Experiment
from dask_hpo.objective import ScriptObjective
from dask_hpo.plots import save
from dask_hpo.schedulers import FIFOScheduler
from dask_hpo.tuner import Tuner

SCRIPT = Path(__file__).with_name("train_digits.py")
#: What one would try without tuning. It goes first, so it is trial 0.
DEFAULT = {"learning_rate": 0.01, "batch_size": 32}


def run_demo(
    output: Path, *, max_wallclock_time: float, n_workers: int, echo: Callable[[str], Any]
) -> Experiment:
    """Run the search for ``max_wallclock_time`` seconds and write its log and a picture.

    Parameters
    ----------
    output
        Directory that the experiment's directory and the picture go to.
    echo
        Prints one line to the person.
    """
    space = {
        "learning_rate": loguniform(1e-5, 1e-1),
        "batch_size": randint(8, 128),
        "max_epochs": 16,
    }
    scheduler = FIFOScheduler(
        space, metric="validation_error", mode="min", random_seed=0, points_to_evaluate=[DEFAULT]
    )
    tuner = Tuner(
        ScriptObjective(SCRIPT),
        scheduler,
        StoppingCriterion(max_wallclock_time=max_wallclock_time),
        n_workers=n_workers,
        path=output,
    )
    echo(f"Asynchronous random search with {n_workers} slots for {max_wallclock_time:g} s.")
    experiment = tuner.run()
    picture = output / f"{tuner.name}.png"
    save(experiment, picture)
    _tell(experiment, tuner, picture, echo)
    return experiment


def _tell(experiment: Experiment, tuner: Tuner, picture: Path, echo: Callable[[str], Any]) -> None:
    echo("")
    echo(str(experiment.summary()))
    echo("")
    best = experiment.best
    if best is not None:
        default = experiment.trials.loc[experiment.trials["trial_id"] == 0, "value"].iloc[0]
        echo(f"default {DEFAULT}: validation error {default:.2%}")
        tuned = {name: best.config[name] for name in DEFAULT}
        echo(f"best    {tuned}: validation error {best.value:.2%} (trial {best.trial_id})")
    echo(f"log:       {experiment.path / 'events'}")
    echo(f"dashboard: {tuner.dashboard_link} (while it ran)")
    echo(f"picture:   {picture}")
