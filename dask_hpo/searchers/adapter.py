"""Searchers written for d2l.ai's interface, as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dask_hpo.core.events import Configuration
from dask_hpo.core.interfaces import Observation
from dask_hpo.core.space import SearchSpace
from dask_hpo.errors import OptionError, SpaceError

#: So many samples in a row that were given before count as a space that is exhausted.
MAX_SAMPLES = 1000


class D2LSearcher:
    """Drives an object with d2l's ``sample_configuration()`` and ``update(config, error, ...)``.

    What it samples is made plain Python, completed with the constants of the space and checked. In
    a finite space a configuration is proposed once: the object is asked again, up to 1,000 times.
    ``update`` is called once for each trial, when it has ended, with its best loss as the error
    (lower is better, ``inf`` for a failure).

    Parameters
    ----------
    searcher
        The object, such as an instance of ``d2l.torch.RandomSearcher``.
    space
        The search space, or the dict that defines one.

    Raises
    ------
    OptionError
        If the object has not both methods.
    SpaceError
        If the space breaks a rule; from `suggest`, if a sampled configuration is not of the space.

    References
    ----------
    Zhang, Lipton, Li & Smola, Dive into Deep Learning, section 19.2 (HPOSearcher).
    """

    def __init__(self, searcher: Any, space: SearchSpace | Mapping[str, Any]) -> None:
        if not is_d2l_searcher(searcher):
            raise OptionError(
                f"searcher={searcher!r}: a searcher of d2l has sample_configuration() and "
                "update(config, error, additional_info=None); give an instance of such a class"
            )
        self.space = space if isinstance(space, SearchSpace) else SearchSpace(space)
        self.searcher = searcher
        self._given: set[tuple[Any, ...]] = set()  # stays empty for an infinite space
        self._exhausted = False

    def suggest(self, trial_id: int) -> Configuration | None:  # noqa: ARG002 - d2l's knows no numbers
        """Return the configuration of this trial, or None when the space is exhausted."""
        config = None if self._exhausted else self._sample_new()
        self._exhausted = config is None
        return config

    def restore(self, trial_id: int, config: Configuration) -> None:  # noqa: ARG002 - see suggest
        """Let the object sample, as it did then, and remember what was really given."""
        self.searcher.sample_configuration()
        if self.space.size is not None:
            self._given.add(tuple(config.values()))

    def observe(self, observation: Observation) -> None:
        """Tell the object of a trial that has ended."""
        if observation.final:
            self.searcher.update(dict(observation.config), observation.loss, additional_info=None)

    def __repr__(self) -> str:
        return f"D2LSearcher({self.searcher!r}, {self.space!r})"

    def _sample_new(self) -> Configuration | None:
        """Sample until a configuration of a finite space was never given."""
        size = self.space.size
        if size is None:
            return self._sample()
        for _ in range(MAX_SAMPLES if len(self._given) < size else 0):
            config = self._sample()
            if config is None:
                return None
            key = tuple(config.values())
            if key not in self._given:
                self._given.add(key)
                return config
        return None

    def _sample(self) -> Configuration | None:
        config = self.searcher.sample_configuration()
        if config is None:
            return None
        name = f"{type(self.searcher).__name__}.sample_configuration()"
        if not isinstance(config, Mapping):
            raise OptionError(f"{name} gave {config!r}; it must return a dict of name to value")
        try:
            return self.space.canonical(config)
        except SpaceError as error:
            raise SpaceError(
                f"{name} gave a configuration outside of the search space: {error}. "
                "Give the searcher and the scheduler the same space"
            ) from error


def is_d2l_searcher(searcher: Any) -> bool:
    """Say whether it is an instance with d2l's two methods."""
    return not isinstance(searcher, type) and all(
        callable(getattr(searcher, name, None)) for name in ("sample_configuration", "update")
    )
