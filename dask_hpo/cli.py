"""The command line, ``dask hpo ...``: it parses, calls the package and prints; no other logic."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dask_hpo import __version__
from dask_hpo.errors import HPOError, LogError, OptionError

if TYPE_CHECKING:
    from dask_hpo.tuner import Tuner


class _Group(click.Group):
    """Turns the package's errors into a message and exit status 1, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HPOError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group)
@click.version_option(__version__, prog_name="dask hpo")
def hpo() -> None:
    """Tune hyperparameters on a Dask cluster."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    # Dask tells of a lost connection by tracebacks, and the driver in a sentence.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)


_LIMITS = (
    "max_wallclock_time",
    "max_num_trials_started",
    "max_num_trials_completed",
    "max_num_evaluations",
    "target_value",
    "max_failure_rate",
)

_path_option = click.option(
    "--path",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory that experiments live in  [default: Dask's configuration hpo.path, ~/dask-hpo]",
)


_address_option = click.option(
    "--address", help="A Dask scheduler  [default: a cluster on this machine]"
)


def _limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add an option for each limit of a `StoppingCriterion`."""
    for option in (
        click.option("--max-failure-rate", type=float, help="Give up above it  [default: 0.8]"),
        click.option("--target-value", type=float, help="End when the metric reaches it"),
        click.option("--max-num-evaluations", type=int, help="Values of the metric heard"),
        click.option("--max-num-trials-completed", type=int),
        click.option("--max-num-trials-started", type=int),
        click.option("--max-wallclock-time", type=float, help="Seconds"),
    ):
        command = option(command)
    return command


@hpo.command()
@click.argument("script", type=click.Path(path_type=Path))
@click.option(
    "--param",
    "params",
    multiple=True,
    required=True,
    metavar="NAME=DOMAIN",
    help="A hyperparameter, once for each: learning_rate='loguniform(1e-5, 1e-1)', max_epochs=16",
)
@click.option("--metric", required=True, help="The reported value that is optimised")
@click.option("--mode", type=click.Choice(["min", "max"]), default="min", show_default=True)
@click.option(
    "--searcher",
    type=click.Choice(["random", "quasirandom", "grid"]),
    default="random",
    show_default=True,
)
@click.option("--n-workers", type=click.IntRange(1), help="Trials at once  [default: all slots]")
@_limit_options
@click.option("--seed", type=int, help="Configuration i depends on it and on i alone")
@_address_option
@click.option("--resources", metavar="GPU=1", help="Dask resources that each trial takes")
@click.option("--isolation", type=click.Choice(["process", "spawn", "thread"]))
@click.option("--on-stop", type=click.Choice(["stop", "wait"]), default="stop", show_default=True)
@click.option("--trial-timeout", type=float, help="Seconds after which a trial fails")
@click.option("--report-timeout", type=float, help="Seconds of silence after which a trial fails")
@click.option("--memory-limit", metavar="'4 GB'", help="Of a trial with all its processes")
@click.option(
    "--max-lost-attempts",
    type=int,
    default=3,
    show_default=True,
    help="A trial that the infrastructure lost more often fails",
)
@click.option(
    "--reconnect-timeout",
    type=click.FloatRange(0),
    default=300.0,
    show_default=True,
    help="Seconds to wait for a Dask scheduler that went away",
)
@click.option("--file", "files", multiple=True, help="A file the script needs; once for each")
@click.option(
    "--checkpoints",
    metavar="PATH_OR_URL",
    help="Where trials' checkpoints are  [default: in the experiment's directory]",
)
@click.option("--name", help="Name of the experiment  [default: the script's and the time]")
@_path_option
def run(  # noqa: PLR0917 - click passes them by name
    script: Path,
    params: tuple[str, ...],
    metric: str,
    mode: str,
    searcher: str,
    seed: int | None,
    address: str | None,
    resources: str | None,
    files: tuple[str, ...],
    **options: Any,
) -> None:
    """Run SCRIPT once for each configuration, as many at a time as there are slots.

    The script is called with --NAME VALUE for each hyperparameter and reports with
    dask_hpo.Reporter. Exit status 0 means that the run did what was asked and found a best
    configuration.
    """
    from dask_hpo import FIFOScheduler, ScriptObjective, StoppingCriterion, Tuner  # noqa: PLC0415 - help stays fast

    criterion = StoppingCriterion(**_given({limit: options.pop(limit) for limit in _LIMITS}))
    space = _parse_params(params)
    scheduler = FIFOScheduler(
        space,
        searcher,
        metric=metric,
        mode=mode,  # type: ignore[arg-type]  # click.Choice has checked it
        random_seed=seed,
    )
    tuner = Tuner(
        ScriptObjective(script, files=files),
        scheduler,
        criterion,
        client=address,
        resources=_parse_resources(resources),
        **options,
    )
    _run(tuner)


@hpo.command()
@click.argument("name")
@_address_option
@_limit_options
@_path_option
def resume(name: str, address: str | None, path: Path | None, **limits: float | None) -> None:
    """Go on with the experiment NAME (or the one at that path), whatever ended it.

    What still runs on the cluster at that address is attached to; what is gone runs again. Limits
    that are given take the place of those that the experiment had.
    """
    from dask_hpo import Tuner  # noqa: PLC0415 - help stays fast

    criterion = _changed_criterion(name, path, limits)
    _run(Tuner.resume(name, client=address, path=path, stop_criterion=criterion))


def _changed_criterion(name: str, path: Path | None, limits: dict[str, Any]) -> Any:
    from dask_hpo import StoppingCriterion  # noqa: PLC0415 - help stays fast
    from dask_hpo.log.directory import find, read_definition  # noqa: PLC0415

    given = _given(limits)
    if not given:
        return None
    return StoppingCriterion(**{**read_definition(find(name, path)).stop_criterion, **given})


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _run(tuner: Tuner) -> None:
    """Run a tuner and say what came of it."""
    click.echo(f"experiment {tuner.name}: {tuner.path}")
    # While the run is on, SIGTERM leaves the trials to a resume; as it ends, it is a Ctrl-C: the
    # rows that wait for room on a disk are saved.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    experiment = tuner.run()
    click.echo(str(experiment.summary()))
    if experiment.status == "detached":
        click.echo(f"detached: go on with `dask hpo resume {tuner.name}`", err=True)
        sys.exit(128 + signal.SIGTERM)
    if tuner.interrupted:
        click.echo(
            f"interrupted: what was heard is kept in {tuner.path}; go on with "
            f"`dask hpo resume {tuner.name}`",
            err=True,
        )
        sys.exit(130)
    if experiment.best is None:
        raise click.ClickException(
            f"no trial gave a finite {experiment.definition.metric!r}; "
            f"see `dask hpo show {tuner.name}`"
        )


@hpo.command(name="list")
@_path_option
def list_(path: Path | None) -> None:
    """List the experiments, the newest last."""
    from dask_hpo.experiment import load_experiment  # noqa: PLC0415 - help stays fast
    from dask_hpo.log.directory import experiments  # noqa: PLC0415

    for name in experiments(path):
        try:
            click.echo(load_experiment(name, path).line())
        except LogError as error:  # noqa: PERF203 - the others are listed all the same
            click.echo(f"{name:40} unreadable: {error}")


@hpo.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object")
@_path_option
def show(name: str, path: Path | None, *, as_json: bool) -> None:
    """Show the experiment NAME (or the one at that path): its trials, its best, its failures."""
    from dask_hpo.experiment import load_experiment  # noqa: PLC0415 - help stays fast

    experiment = load_experiment(name, path)
    if as_json:
        click.echo(json.dumps(experiment.to_json_dict(), indent=2))
    else:
        click.echo(str(experiment.summary()))


@hpo.command()
@click.argument("name")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--kind",
    type=click.Choice(["incumbent", "learning-curves", "slots", "all"]),
    default="all",
    show_default=True,
)
@_path_option
def plot(name: str, output: Path, kind: str, path: Path | None) -> None:
    """Draw the experiment NAME into the file OUTPUT (.png, .svg, .pdf)."""
    from dask_hpo.experiment import load_experiment  # noqa: PLC0415 - help stays fast
    from dask_hpo.plots import save  # noqa: PLC0415

    save(load_experiment(name, path), output, kind)
    click.echo(str(output))


@hpo.command()
@click.option("--max-wallclock-time", type=float, default=40.0, show_default=True, help="Seconds")
@click.option("--n-workers", type=click.IntRange(1), default=2, show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-results"),
    show_default=True,
    help="Directory for the log and the picture",
)
def demo(max_wallclock_time: float, n_workers: int, output: Path) -> None:
    """Tune a small network on scikit-learn's digits, on a cluster on this machine."""
    from dask_hpo.demo import run_demo  # noqa: PLC0415 - help stays fast

    run_demo(output, max_wallclock_time=max_wallclock_time, n_workers=n_workers, echo=click.echo)


def _parse_params(params: tuple[str, ...]) -> dict[str, Any]:
    from dask_hpo.core.space import parse_domain  # noqa: PLC0415 - help stays fast

    space: dict[str, Any] = {}
    for param in params:
        name, equals, text = param.partition("=")
        if not equals or not name:
            raise OptionError(
                f"--param {param!r}: write NAME=DOMAIN, "
                "such as learning_rate='loguniform(1e-5, 1e-1)'"
            )
        if name in space:
            raise OptionError(f"--param {param!r}: {name!r} is given twice; give it once")
        space[name] = parse_domain(text)
    return space


def _parse_resources(text: str | None) -> dict[str, float] | None:
    if text is None:
        return None
    resources: dict[str, float] = {}
    for part in filter(None, text.replace(",", " ").split()):
        name, equals, amount = part.partition("=")
        try:
            resources[name] = float(amount)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise OptionError(
                f"--resources {text!r}: write NAME=AMOUNT, separated by commas, such as GPU=1"
            )
    return resources
