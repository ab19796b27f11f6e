"""The command line, ``dask hpo ...``: it parses, calls the package and prints; no other logic."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import click

from dask_hpo import __version__
from dask_hpo.errors import HPOError, OptionError


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


_LIMITS = (
    "max_wallclock_time",
    "max_num_trials_started",
    "max_num_trials_completed",
    "max_num_evaluations",
    "target_value",
)

_path_option = click.option(
    "--path",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory that experiments live in  [default: Dask's configuration hpo.path, ~/dask-hpo]",
)


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
@click.option("--max-wallclock-time", type=float, help="Seconds")
@click.option("--max-num-trials-started", type=int)
@click.option("--max-num-trials-completed", type=int)
@click.option("--max-num-evaluations", type=int, help="Values of the metric heard")
@click.option("--target-value", type=float, help="End when the metric reaches it")
@click.option("--seed", type=int, help="Configuration i depends on it and on i alone")
@click.option("--address", help="A Dask scheduler  [default: a cluster on this machine]")
@click.option("--resources", metavar="GPU=1", help="Dask resources that each trial takes")
@click.option("--isolation", type=click.Choice(["process", "spawn", "thread"]))
@click.option("--on-stop", type=click.Choice(["stop", "wait"]), default="stop", show_default=True)
@click.option("--file", "files", multiple=True, help="A file the script needs; once for each")
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

    criterion = StoppingCriterion(**{limit: options.pop(limit) for limit in _LIMITS})
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
    click.echo(f"experiment {tuner.name}: {tuner.path}")
    experiment = tuner.run()
    click.echo(str(experiment.summary()))
    if tuner.interrupted:
        click.echo(f"interrupted: what was heard is kept in {tuner.path}", err=True)
        sys.exit(130)
    if experiment.best is None:
        raise click.ClickException(
            f"no trial gave a finite {metric!r}; see `dask hpo show {tuner.name}`"
        )


@hpo.command(name="list")
@_path_option
def list_(path: Path | None) -> None:
    """List the experiments, the newest last."""
    from dask_hpo.experiment import load_experiment  # noqa: PLC0415 - help stays fast
    from dask_hpo.log.directory import experiments  # noqa: PLC0415

    for name in experiments(path):
        click.echo(load_experiment(name, path).line())


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
