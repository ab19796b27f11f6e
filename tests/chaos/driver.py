"""A run's driver: `driver.py start|resume ...` begins the experiment, or goes on with it.

Exit status 0 at the experiment's end, 1 with a message for an error that a person is told of.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import cloudpickle
import objective

from dask_hpo import FIFOScheduler, StoppingCriterion, Tuner
from dask_hpo.errors import HPOError

NAME = "chaos"
#: Chaos takes an attempt more often than any cluster would.
MAX_LOST_ATTEMPTS = 1_000
RECONNECT_TIMEOUT_S = 60


def main() -> None:
    arguments = parse()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    cloudpickle.register_pickle_by_value(objective)
    try:
        tuner = start(arguments) if arguments.what == "start" else resume(arguments)
        print(tuner.run().summary())
    except HPOError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def start(arguments: argparse.Namespace) -> Tuner:
    scheduler = FIFOScheduler(
        objective.space(arguments.isolation),
        metric="error",
        mode="min",
        random_seed=arguments.seed,
    )
    limits = StoppingCriterion(max_num_trials_started=arguments.trials, max_failure_rate=1.0)
    return Tuner(
        objective.train,
        scheduler,
        limits,
        client=arguments.address,
        name=NAME,
        path=arguments.root,
        isolation=arguments.isolation,
        progress=False,
        max_lost_attempts=MAX_LOST_ATTEMPTS,
        reconnect_timeout=RECONNECT_TIMEOUT_S,
    )


def resume(arguments: argparse.Namespace) -> Tuner:
    return Tuner.resume(NAME, client=arguments.address, path=arguments.root, progress=False)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["start", "resume"])
    parser.add_argument("--address", required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--isolation", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
