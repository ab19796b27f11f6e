"""First in, first out: every trial runs to its own end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dask_hpo.core.interfaces import Continue, Decision
from dask_hpo.core.metric import Metric, Mode
from dask_hpo.core.space import SearchSpace
from dask_hpo.errors import OptionError


class FIFOScheduler:
    """Run the searcher's configurations in their order, each until it ends by itself.

    With ``searcher="random"`` this is asynchronous random search (Bergstra & Bengio, 2012, run
    without a barrier): a slot that frees gets the next configuration at once.

    Parameters
    ----------
    search_space
        A dict of name to domain, or to a plain value for a constant.
    searcher
        ``"random"``, ``"quasirandom"``, ``"grid"``, or an object: one with ``suggest`` and
        ``observe``, or d2l's ``sample_configuration`` and ``update``.
    metric, mode
        The reported value that is optimised, and ``"min"`` or ``"max"``.
    random_seed
        Configuration *i* depends on it and on *i* alone. None: one is drawn when the tuner is made,
        and recorded.
    points_to_evaluate
        Configurations that go first; names they leave out are sampled.

    Raises
    ------
    SpaceError
        If the space or a point breaks a rule.
    OptionError
        If another option does.
    """

    def __init__(
        self,
        search_space: Mapping[str, Any],
        searcher: Any = "random",
        *,
        metric: str,
        mode: Mode = "min",
        random_seed: int | None = None,
        points_to_evaluate: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.space = SearchSpace(search_space)
        self.searcher = searcher
        self.metric = Metric(metric, mode)
        self.random_seed = _check_seed(random_seed)
        self.points_to_evaluate = tuple(points_to_evaluate)

    @property
    def options(self) -> dict[str, Any]:
        """What a resume makes the scheduler of again, beside space, metric and seed; plain data.

        A searcher that is an object is left out: whoever resumes brings it along.
        """
        named = isinstance(self.searcher, str)
        return {
            "points_to_evaluate": [self.space.canonical_part(p) for p in self.points_to_evaluate],
            **({"searcher": self.searcher} if named else {}),
        }

    def on_report(self, trial_id: int, step: int, loss: float) -> Decision:  # noqa: ARG002 - FIFO looks at no report
        """Let it run."""
        return Continue()

    def on_end(self, trial_id: int, loss: float) -> None:
        """Nothing to learn."""

    def __repr__(self) -> str:
        return f"FIFOScheduler(metric={self.metric.name!r}, mode={self.metric.mode!r})"


def _check_seed(seed: int | None) -> int | None:
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise OptionError(
            f"random_seed={seed!r}: a seed is a whole number from 0 up; "
            "give one, or None to have one drawn"
        )
    return seed
