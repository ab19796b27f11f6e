"""Searchers: the conformance suite, and what each promises besides."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from dask_hpo.core.interfaces import Observation
from dask_hpo.core.space import (
    SearchSpace,
    choice,
    lograndint,
    loguniform,
    ordinal,
    randint,
    uniform,
)
from dask_hpo.errors import OptionError, SpaceError
from dask_hpo.searchers import (
    D2LSearcher,
    GridSearcher,
    QuasiRandomSearcher,
    RandomSearcher,
    as_searcher,
)
from dask_hpo.searchers.base import Scan

_spec = importlib.util.spec_from_file_location(
    "searcher_conformance", Path(__file__).with_name("searcher_conformance.py")
)
conformance = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(conformance)
INFINITE, key, take = conformance.INFINITE, conformance.key, conformance.take


class TestRandom(conformance.SearcherConformance):
    make = staticmethod(RandomSearcher)


class TestQuasiRandom(conformance.SearcherConformance):
    make = staticmethod(QuasiRandomSearcher)


class TestGrid(conformance.SearcherConformance):
    grid = True
    make = staticmethod(GridSearcher)


class TestShuffledGrid(conformance.SearcherConformance):
    @staticmethod
    def make(space, **options):
        return GridSearcher(space, shuffle=True, **options)


# Random search


def test_random_configuration_i_depends_on_the_seed_and_i_alone():
    whole = take(RandomSearcher(INFINITE, seed=3), 40)
    assert RandomSearcher(INFINITE, seed=3).suggest(31) == whole[31]
    pointed = take(RandomSearcher(INFINITE, seed=3, points_to_evaluate=[{"dropout": 0.5}]), 40)
    assert pointed[1:] == whole[1:]
    assert pointed[0] != whole[0]


def test_random_configurations_of_a_seed_never_change():
    space = {"a": uniform(0, 1), "b": randint(1, 100), "c": choice(["x", "y"])}
    assert take(RandomSearcher(space, seed=0), 3) == [
        {"a": 0.28674876693719753, "b": 50, "c": "y"},
        {"a": 0.7337104128909868, "b": 8, "c": "x"},
        {"a": 0.4211382096499131, "b": 80, "c": "x"},
    ]


def test_an_infinite_space_leaves_no_trace():
    searcher = RandomSearcher(INFINITE)
    take(searcher, 100)
    tracemalloc.start()
    for trial_id in range(100, 2100):
        searcher.suggest(trial_id)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 20_000


@pytest.mark.parametrize("kind", [RandomSearcher, QuasiRandomSearcher])
def test_ten_thousand_configurations_are_exhausted_in_seconds(kind):
    space = SearchSpace({"a": lograndint(1, 1000), "b": randint(1, 10)})
    started = time.process_time()
    configs = take(kind(space, seed=1), space.size + 1)
    assert time.process_time() - started < 6
    assert configs.pop() is None
    assert len({key(config) for config in configs}) == space.size == 10_000


@pytest.mark.parametrize("kind", [RandomSearcher, QuasiRandomSearcher, GridSearcher])
@pytest.mark.parametrize(
    "space",
    [
        {"a": randint(1, 10**12)},
        {name: randint(1, 1000) for name in "abcd"},
    ],
)
def test_a_huge_space_is_not_enumerated(kind, space):
    tracemalloc.start()
    configs = take(kind(space), 50)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000
    assert len({key(config) for config in configs}) == 50


def test_what_is_hardly_ever_drawn_is_found_in_the_end():
    rare = scipy.stats.binom(20, 0.01)  # its last values come once in a billion draws
    space = SearchSpace({"a": rare, "b": choice([1, 2])})
    configs = take(RandomSearcher(space), space.size + 1)
    assert None not in configs[:-1]
    assert configs[-1] is None


# Quasi-random search


def test_the_sequence_does_not_depend_on_how_it_is_asked():
    whole = take(QuasiRandomSearcher(INFINITE, seed=3), 600)
    for trial_id in (599, 0, 255, 256, 512):
        assert QuasiRandomSearcher(INFINITE, seed=3).suggest(trial_id) == whole[trial_id]
    engine_points = [config["dropout"] for config in whole]
    assert len(set(engine_points)) == 600


@pytest.mark.parametrize("start", [0, 256, 512])
def test_each_slice_of_each_axis_holds_one_point(start):
    searcher = QuasiRandomSearcher({name: uniform(0, 1) for name in "abc"}, seed=5)
    configs = take(searcher, 768)[start : start + 256]
    for name in "abc":
        assert sorted(int(config[name] * 256) for config in configs) == list(range(256))


def test_a_finite_space_takes_the_sequence_without_its_repetitions():
    finite = SearchSpace({"a": randint(1, 5), "b": randint(1, 7)})
    cube = take(QuasiRandomSearcher({"a": uniform(0, 1), "b": uniform(0, 1)}, seed=2), 512)
    points = [finite.from_unit(list(point.values())) for point in cube]
    expected = list({key(config): config for config in points}.values())
    assert take(QuasiRandomSearcher(finite, seed=2), 30) == expected[:30]
    assert points[:30] != expected[:30]  # there are repetitions


def test_points_do_not_use_up_the_sequence():
    space = {"a": uniform(0, 1)}
    plain = take(QuasiRandomSearcher(space), 5)
    pointed = take(QuasiRandomSearcher(space, points_to_evaluate=[{"a": 0.5}]), 6)
    assert pointed[1:] == plain


def test_scipy_is_loaded_for_the_sequence_alone():
    code = (
        "import sys; from dask_hpo.searchers import QuasiRandomSearcher, RandomSearcher\n"
        "from dask_hpo.core.space import uniform\n"
        "RandomSearcher({'a': uniform(0, 1)}).suggest(0)\n"
        "unwanted = {'scipy', 'dask', 'distributed', 'pandas', 'pyarrow'} & set(sys.modules)\n"
        "assert not unwanted, unwanted\n"
        "QuasiRandomSearcher({'a': uniform(0, 1)}).suggest(0); assert 'scipy' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# Grid search


def test_a_grid_goes_through_the_product_in_order():
    space = {"a": randint(1, 3), "k": 7, "b": choice(["x", "y"]), "c": uniform(0, 1)}
    configs = take(GridSearcher(space, num_per_domain=3), 19)
    expected = itertools.product([1, 2, 3], ["x", "y"], [0.0, 0.5, 1.0])
    assert configs == [*({"a": a, "k": 7, "b": b, "c": c} for a, b, c in expected), None]


def test_numbers_for_single_names_thin_out_a_finite_domain():
    space = {"a": randint(1, 100), "b": loguniform(0.01, 1)}
    searcher = GridSearcher(space, num_per_domain={"a": 2, "b": 3})
    assert searcher.size == 6
    assert [config["a"] for config in take(searcher, 6)] == [26, 26, 26, 76, 76, 76]
    assert [c["b"] for c in take(GridSearcher(space, num_per_domain={"b": 3}), 3)] == pytest.approx(
        [0.01, 0.1, 1]
    )


def test_a_shuffled_grid_holds_the_same_in_another_order():
    space = {"a": randint(1, 10), "b": randint(1, 10)}
    plain = take(GridSearcher(space), 100)
    shuffled = take(GridSearcher(space, shuffle=True), 101)
    assert shuffled.pop() is None
    assert shuffled != plain
    assert sorted(map(key, shuffled)) == sorted(map(key, plain))
    assert take(GridSearcher(space, shuffle=True, seed=1), 100) != shuffled
    # Its first tenth covers the space, as a grid in order does not.
    assert len({config["a"] for config in shuffled[:10]}) > 4


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000])
def test_a_scan_meets_each_number_once(size):
    order = list(Scan(size, seed=0))
    assert sorted(order) == list(range(size))
    assert size < 10 or order != sorted(order)


@pytest.mark.parametrize("number", [0, -1, 2.5, True, "5", {"c": 0}])
def test_numbers_per_domain_are_checked(number):
    with pytest.raises(OptionError, match=r"num_per_domain=.*give one such as 5"):
        GridSearcher({"c": uniform(0, 1)}, num_per_domain=number)


def test_numbers_for_unknown_and_forgotten_names():
    with pytest.raises(OptionError, match="'x' is no domain of the space; give numbers for c"):
        GridSearcher({"c": uniform(0, 1)}, num_per_domain={"x": 3})
    with pytest.raises(OptionError, match=r"'c' has infinitely many values.*add 'c': 5"):
        GridSearcher({"c": uniform(0, 1), "d": uniform(0, 1)}, num_per_domain={"d": 3})


# Points to evaluate


def test_a_partial_point_is_completed_by_the_seed():
    points = [{"dropout": 0.5}, {"dropout": 0.5}]
    first, second = take(RandomSearcher(INFINITE, seed=1, points_to_evaluate=points), 2)
    assert first["dropout"] == second["dropout"] == 0.5
    assert first["learning_rate"] != second["learning_rate"]
    again = RandomSearcher(INFINITE, seed=1, points_to_evaluate=points)
    assert take(again, 2) == [first, second]


def test_points_become_plain_values():
    space = {"a": uniform(0, 2), "b": randint(1, 4), "k": "x"}
    point = {"b": np.int64(3), "a": 1}
    config = RandomSearcher(space, points_to_evaluate=[point]).suggest(0)
    assert config == {"a": 1.0, "b": 3, "k": "x"}
    assert list(config) == ["a", "b", "k"]
    assert [type(value) for value in config.values()] == [float, int, str]


def test_who_changes_a_point_changes_it_for_no_other():
    point = {"dropout": 0.5}
    searcher = RandomSearcher(INFINITE, points_to_evaluate=[point])
    point["dropout"] = 0.6
    searcher.suggest(0).clear()
    assert searcher.suggest(0)["dropout"] == 0.5


@pytest.mark.parametrize(
    ("points", "error", "message"),
    [
        ([{"droput": 0.5}], SpaceError, "'droput' is not in the search space.*mean 'dropout'"),
        (
            [{"dropout": 2}],
            SpaceError,
            r"dropout=2 is outside of uniform\(0.0, 1.0\); give a value",
        ),
        ([{"units": 16.0}], SpaceError, r"units=16.0 is outside of lograndint\(8, 512\)"),
        ([{"epochs": 3}], SpaceError, "epochs=3 is not 16, the constant.*leave epochs out"),
        ([0.5], SpaceError, "0.5 is no configuration"),
        ({"dropout": 0.5}, OptionError, "points stand in a list"),
        ("dropout", OptionError, "points stand in a list"),
    ],
)
def test_points_are_checked_at_once(points, error, message):
    with pytest.raises(error, match=message):
        RandomSearcher(INFINITE, points_to_evaluate=points)


@pytest.mark.parametrize("seed", [-1, 0.5, None, "1", True])
def test_the_seed_is_checked(seed):
    with pytest.raises(OptionError, match="a seed is a whole number from 0 up; give one"):
        RandomSearcher(INFINITE, seed=seed)


# d2l's searchers


class D2LRandom:
    """As d2l's RandomSearcher does: a first configuration, then scipy samples."""

    def __init__(self, config_space, initial_config=None):
        self.config_space = config_space
        self.initial_config = initial_config
        self.updates = []

    def sample_configuration(self):
        if self.initial_config is not None:
            result, self.initial_config = self.initial_config, None
            return result
        return {name: domain.rvs() for name, domain in self.config_space.items()}

    def update(self, config, error, additional_info=None):
        self.updates.append((config, error, additional_info))


class ScipySpace(dict):
    def __init__(self, seed=0):
        super().__init__(
            learning_rate=scipy.stats.loguniform(1e-2, 1), batch_size=scipy.stats.randint(32, 256)
        )
        for i, rv in enumerate(self.values()):
            rv.random_state = np.random.default_rng([seed, i])


def test_a_searcher_of_d2l_is_driven():
    space = ScipySpace()
    theirs = D2LRandom(space, {"learning_rate": 0.1, "batch_size": 128})
    searcher = D2LSearcher(theirs, {**space, "max_epochs": 4})
    first, second = searcher.suggest(0), searcher.suggest(1)
    assert first == {"learning_rate": 0.1, "batch_size": 128, "max_epochs": 4}
    assert [type(value) for value in second.values()] == [float, int, int]
    assert not searcher._given
    searcher.observe(Observation(0, first, 0.9, step=1, final=False))
    assert theirs.updates == []
    searcher.observe(Observation(0, first, 0.8, step=2, final=True))
    assert theirs.updates == [(first, 0.8, None)]


class Cycle(D2LRandom):
    def __init__(self, configs):
        super().__init__({})
        self.configs = itertools.cycle(configs)
        self.asked = 0

    def sample_configuration(self):
        self.asked += 1
        return next(self.configs)


def test_a_finite_space_of_d2l_is_not_repeated():
    searcher = D2LSearcher(Cycle([{"a": 1}, {"a": 1}, {"a": 2}]), {"a": choice([1, 2])})
    assert take(searcher, 4) == [{"a": 1}, {"a": 2}, None, None]
    assert searcher.searcher.asked == 3


def test_a_stuck_searcher_of_d2l_ends():
    searcher = D2LSearcher(Cycle([{"a": 1}]), {"a": choice([1, 2])})
    assert take(searcher, 3) == [{"a": 1}, None, None]
    assert searcher.searcher.asked == 1001


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (
            {"a": 3},
            SpaceError,
            r"Cycle.sample_configuration\(\) gave.*a=3 is outside.*the same space",
        ),
        ({}, SpaceError, "no value for 'a'"),
        ([3], OptionError, "must return a dict"),
    ],
)
def test_what_d2l_samples_is_checked(config, error, message):
    with pytest.raises(error, match=message):
        D2LSearcher(Cycle([config]), {"a": choice([1, 2])}).suggest(0)


# as_searcher


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("random", RandomSearcher),
        ("quasirandom", QuasiRandomSearcher),
        ("sobol", QuasiRandomSearcher),
        ("grid", GridSearcher),
    ],
)
def test_a_name_makes_a_searcher(name, kind):
    searcher = as_searcher(name, SearchSpace(INFINITE), 5, [{"dropout": 0.25}])
    assert type(searcher) is kind
    assert searcher.seed == 5
    assert searcher.suggest(0)["dropout"] == 0.25


def test_objects_are_taken_as_they_are():
    ours = RandomSearcher(INFINITE)
    assert as_searcher(ours, INFINITE, 5, ()) is ours
    theirs = D2LRandom({})
    adapted = as_searcher(theirs, INFINITE, 5, ())
    assert isinstance(adapted, D2LSearcher)
    assert adapted.searcher is theirs


@pytest.mark.parametrize(
    ("searcher", "message"),
    [
        ("randon", r"'randon' is no searcher \(did you mean 'random'\?\); give one of 'random'"),
        ("Sobol", r"did you mean 'sobol'\?"),
        ("zzz", "'zzz' is no searcher; give one of"),
        (None, "None is no searcher; give one of .* an object with suggest"),
        (RandomSearcher, r"RandomSearcher is a class; give an instance"),
        (D2LRandom, "D2LRandom is a class; give an instance"),
    ],
)
def test_anything_else_is_refused(searcher, message):
    with pytest.raises(OptionError, match=message):
        as_searcher(searcher, INFINITE, 0, ())


@pytest.mark.parametrize("searcher", [RandomSearcher(INFINITE), D2LRandom({})])
def test_points_belong_to_the_one_who_makes_the_searcher(searcher):
    with pytest.raises(OptionError, match="pass them to the searcher itself"):
        as_searcher(searcher, INFINITE, 0, [{"dropout": 0.5}])


def test_ordinal_values_keep_their_types():
    values = [config["a"] for config in take(GridSearcher({"a": ordinal([1, 2.5, None])}), 3)]
    assert values == [1, 2.5, None]
