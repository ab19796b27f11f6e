"""What every searcher promises, as one suite: derive from it and say how to make the searcher.

class TestMine(SearcherConformance):
    def make(self, space, *, seed=0, points_to_evaluate=()):
        return MySearcher(space, seed=seed, points_to_evaluate=points_to_evaluate)
"""

from __future__ import annotations

import copy
import math
import pickle
import random

import numpy as np
import pytest

from dask_hpo.core.interfaces import Observation
from dask_hpo.core.space import (
    SearchSpace,
    choice,
    lograndint,
    loguniform,
    ordinal,
    quniform,
    randint,
    uniform,
)

INFINITE = {
    "learning_rate": loguniform(1e-5, 1e-1),
    "units": lograndint(8, 512),
    "optimizer": choice(["adam", "sgd", None]),
    "dropout": uniform(0, 1),
    "epochs": 16,
}
FINITE = {
    "layers": randint(1, 4),
    "momentum": quniform(0, 0.3, 0.1),
    "size": ordinal([16, 64]),
    "flag": choice([True, False]),
    "data": "mnist",
}
PLAIN = (bool, int, float, str, type(None))


def observation(trial_id, config, loss=1.0, *, final=True):
    return Observation(trial_id, config, loss, step=1, final=final)


def take(searcher, n, *, start=0, losses=None):
    """Suggest n times, and let the searcher hear of every trial in a shuffled order."""
    configs = []
    running = []
    rng = random.Random(losses)
    for trial_id in range(start, start + n):
        config = searcher.suggest(trial_id)
        configs.append(copy.deepcopy(config))
        if losses is None or config is None:
            continue
        running.append((trial_id, config))
        if rng.random() < 0.5:
            ended, its_config = running.pop(rng.randrange(len(running)))
            loss = rng.choice([rng.random(), math.inf])
            searcher.observe(observation(ended, its_config, rng.random(), final=False))
            searcher.observe(observation(ended, its_config, loss))
    return configs


def key(config):
    return tuple(config.items())


class SearcherConformance:
    """Tests that hold for every searcher. ``learns``: observations change what it proposes."""

    learns = False
    grid = False  #: exhausts an infinite space, too

    def make(self, space, *, seed=0, points_to_evaluate=()):
        raise NotImplementedError

    @pytest.mark.parametrize("definition", [INFINITE, FINITE])
    def test_configurations_are_plain_valid_and_in_order(self, definition):
        space = SearchSpace(definition)
        for config in take(self.make(space), 60, losses=1):
            assert list(config) == list(definition)
            space.validate(config)
            assert all(type(value) in PLAIN for value in config.values())

    @pytest.mark.parametrize("definition", [INFINITE, FINITE])
    def test_the_seed_says_it_all(self, definition):
        first = take(self.make(definition, seed=7), 60, losses=1)
        np.random.seed(1)  # noqa: NPY002 - nobody may look at it
        random.seed(1)
        assert take(self.make(definition, seed=7), 60, losses=1) == first

    def test_another_seed_says_something_else(self):
        if self.grid:
            pytest.skip("a grid is the same for every seed")
        first = take(self.make(INFINITE, seed=7), 10)
        assert take(self.make(INFINITE, seed=8), 10) != first

    @pytest.mark.parametrize("definition", [INFINITE, FINITE])
    def test_observations_change_nothing(self, definition):
        if self.learns:
            pytest.skip("it learns")
        silent = take(self.make(definition), 60)
        assert take(self.make(definition), 60, losses=1) == silent
        assert take(self.make(definition), 60, losses=2) == silent

    @pytest.mark.parametrize("definition", [INFINITE, FINITE])
    def test_points_come_first(self, definition):
        space = SearchSpace(definition)
        full = space.sample(np.random.default_rng(3))
        partial = {name: full[name] for name in list(space.domains)[1:]}
        configs = take(self.make(space, points_to_evaluate=[full, full, partial]), 60)
        assert configs[0] == full
        assert configs[1].items() >= partial.items()
        for config in configs:
            space.validate(config)
        assert configs.count(full) == 1

    def test_no_configuration_twice_and_then_none_for_ever(self):
        space = SearchSpace(FINITE)
        searcher = self.make(space, points_to_evaluate=[{"layers": 2}, {"layers": 2, "size": 16}])
        configs = take(searcher, space.size, losses=1)
        assert len({key(config) for config in configs}) == space.size == 64
        assert take(searcher, 5, start=space.size) == [None] * 5

    def test_a_space_of_constants_has_one_configuration(self):
        assert take(self.make({"a": 1, "b": "x"}), 3) == [{"a": 1, "b": "x"}, None, None]

    @pytest.mark.parametrize("definition", [INFINITE, FINITE])
    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
    def test_a_copy_goes_on_by_itself(self, definition, clone):
        whole = take(self.make(definition), 50)
        searcher = self.make(definition)
        take(searcher, 20)
        twin = clone(searcher)
        assert take(searcher, 30, start=20) == whole[20:]
        assert take(twin, 30, start=20) == whole[20:]

    @pytest.mark.parametrize("definition", [INFINITE, FINITE])
    @pytest.mark.parametrize("points", [(), ({},)])
    def test_a_new_one_that_is_told_the_past_goes_on_by_it(self, definition, points):
        whole = take(self.make(definition, points_to_evaluate=points), 55)
        searcher = self.make(definition, points_to_evaluate=points)
        for trial_id, config in enumerate(whole[:30]):
            searcher.restore(trial_id, config)
            searcher.observe(observation(trial_id, config))
        assert take(searcher, 25, start=30) == whole[30:]

    @pytest.mark.parametrize("definition", [INFINITE, FINITE])
    def test_who_changes_a_configuration_changes_no_other(self, definition):
        clean = take(self.make(definition, points_to_evaluate=[{}]), 20)
        searcher = self.make(definition, points_to_evaluate=[{}])
        for trial_id, expected in enumerate(clean):
            config = searcher.suggest(trial_id)
            assert config == expected
            config.clear()
