"""Domains and search spaces: maps to the unit cube and back, and what is refused."""

from __future__ import annotations

import copy
import enum
import json
import math
import pickle

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from dask_hpo.core.space import (
    Domain,
    SearchSpace,
    choice,
    lograndint,
    loguniform,
    ordinal,
    parse_domain,
    qlograndint,
    qloguniform,
    qrandint,
    quniform,
    randint,
    uniform,
)
from dask_hpo.errors import SpaceError

UNITS = st.floats(0, 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(min_value=5e-324, allow_infinity=False)
PLAIN = (bool, int, float, str, type(None))


def pairs(numbers):
    return st.tuples(numbers, numbers).map(sorted).filter(lambda pair: pair[0] < pair[1])


@st.composite
def quantised(draw, make, numbers, steps):
    (lower, upper), q = draw(pairs(numbers)), draw(steps)
    try:
        return make(lower, upper, q)
    except SpaceError:  # no multiple of q within
        assume(False)


INTS = st.integers(-(2**49), 2**49)
COUNTS = st.integers(1, 2**40)
SMALL = st.floats(-1e3, 1e3)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | FLOATS | st.text()
VALUES = st.lists(SCALARS, min_size=1, max_size=8, unique=True)

INFINITE_DOMAINS = st.one_of(
    pairs(FLOATS).map(lambda pair: uniform(*pair)),
    pairs(POSITIVE).map(lambda pair: loguniform(*pair)),
)
FINITE_DOMAINS = st.one_of(
    pairs(INTS).map(lambda pair: randint(*pair)),
    pairs(COUNTS).map(lambda pair: lograndint(*pair)),
    quantised(qrandint, INTS, st.integers(1, 1000)),
    quantised(qlograndint, COUNTS, st.integers(1, 1000)),
    quantised(quniform, SMALL, st.floats(1e-3, 10)),
    quantised(qloguniform, st.floats(1e-3, 1e3), st.floats(1e-3, 10)),
    VALUES.map(choice),
    VALUES.map(ordinal),
    st.tuples(st.integers(1, 60), st.floats(0.01, 0.99)).map(
        lambda pair: SearchSpace({"a": scipy.stats.binom(*pair)})["a"]
    ),
)
WRAPPED = [
    SearchSpace({"a": rv})["a"]
    for rv in (
        scipy.stats.norm(2, 3),
        scipy.stats.beta(2, 5),
        scipy.stats.gamma(2.0, scale=3),
        scipy.stats.cauchy(),
        scipy.stats.loguniform(1, 10, loc=5),
        scipy.stats.poisson(3),
        scipy.stats.geom(0.2),
        scipy.stats.binom(10, 0.3),
        scipy.stats.randint(3, 4),
    )
]
DOMAINS = INFINITE_DOMAINS | FINITE_DOMAINS


# What holds for every domain


@given(DOMAINS | st.sampled_from(WRAPPED), UNITS)
def test_every_point_of_the_unit_interval_is_a_value(domain, u):
    value = domain.from_unit(u)
    assert type(value) in PLAIN
    assert domain.contains(value)
    assert domain.canonical(value) == value
    assert 0 <= domain.to_unit(value) <= 1
    assert domain.contains(domain.from_unit(domain.to_unit(value)))


@given(FINITE_DOMAINS, UNITS, st.integers(0, 2**60))
def test_a_finite_domain_maps_there_and_back(domain, u, index):
    for value in (domain.from_unit(u), domain.at(index % domain.size)):
        back = domain.from_unit(domain.to_unit(value))
        assert (back, type(back)) == (value, type(value))
    assert domain.index(domain.at(index % domain.size)) == index % domain.size


@given(INFINITE_DOMAINS, UNITS)
def test_an_infinite_domain_maps_there_and_nearly_back(domain, u):
    value = domain.from_unit(u)
    scale = max(abs(domain.lower), abs(domain.upper))
    back = domain.from_unit(domain.to_unit(value))
    assert back == pytest.approx(value, rel=1e-9, abs=1e-15 * scale + 1e-300)
    assert domain.size is None


@given(DOMAINS)
def test_a_domain_is_read_back_from_its_text(domain):
    again = parse_domain(domain.expression())
    assert again == domain
    assert repr(again) == repr(domain)  # which tells 1 from True and 1.0
    assert again.expression() == domain.expression()


@pytest.mark.parametrize("domain", WRAPPED, ids=lambda domain: domain.expression())
def test_a_distribution_is_read_back_from_its_text(domain):
    assert domain.expression().startswith("scipy.stats.")
    again = parse_domain(domain.expression())
    assert again == domain
    assert again.from_unit(0.3) == domain.from_unit(0.3)


@pytest.mark.parametrize("domain", WRAPPED, ids=lambda domain: domain.expression())
@pytest.mark.parametrize("u", [0, 1e-300, 1 - 2**-53, 1])
def test_the_ends_of_the_unit_interval_are_finite_values(domain, u):
    value = domain.from_unit(u)
    assert domain.contains(value)
    assert math.isfinite(value)


@given(DOMAINS, st.integers(1, 9))
def test_a_grid_represents_the_domain(domain, n):
    grid = domain.grid(n)
    assert 1 <= len(grid) <= n
    assert len(set(grid)) == len(grid)
    assert all(domain.contains(value) for value in grid)
    units = [domain.to_unit(value) for value in grid]
    assert units == sorted(units)


@given(DOMAINS)
def test_domains_are_copied_and_hashed_like_values(domain):
    for twin in (copy.deepcopy(domain), pickle.loads(pickle.dumps(domain))):
        assert twin == domain
        assert hash(twin) == hash(domain)
        assert twin.from_unit(0.7) == domain.from_unit(0.7)


@given(FINITE_DOMAINS)
def test_values_come_in_order_and_once(domain):
    assume(domain.size <= 1000)
    values = domain.values()
    assert len(values) == len(set(values)) == domain.size
    units = [domain.to_unit(value) for value in values]
    assert units == sorted(set(units))


# Distributions: the fraction of samples up to a value against what it must be


def largest_gap(domain, distribution, n=4000):
    rng = np.random.default_rng(12345)
    samples = np.sort([domain.sample(rng) for _ in range(n)])
    points = np.unique(samples)
    empirical = np.searchsorted(samples, points, side="right") / n
    return float(np.max(np.abs(empirical - distribution(points))))


def log_cells(lower, upper, q=1):
    def distribution(x):
        top, bottom = np.log(upper / q + 0.5), np.log(lower / q - 0.5)
        return (np.log(x / q + 0.5) - bottom) / (top - bottom)

    return distribution


@pytest.mark.parametrize(
    ("domain", "distribution"),
    [
        (uniform(-2, 6), scipy.stats.uniform(-2, 8).cdf),
        (loguniform(1e-5, 1e-1), scipy.stats.loguniform(1e-5, 1e-1).cdf),
        (randint(8, 128), scipy.stats.randint(8, 129).cdf),
        (qrandint(8, 128, 8), lambda x: x / 8 / 16),
        (lograndint(1, 1000), log_cells(1, 1000)),
        (qlograndint(8, 512, 8), log_cells(8, 512, 8)),
        (quniform(0, 1, 0.1), lambda x: (np.round(x * 10) + 1) / 11),
        (qloguniform(0.1, 10, 0.1), log_cells(0.1, 10, 0.1)),
        (choice([3, 1, 2]), lambda x: x / 3),
        (ordinal([1, 2, 3, 4]), lambda x: x / 4),
        (SearchSpace({"a": scipy.stats.norm(1, 2)})["a"], scipy.stats.norm(1, 2).cdf),
        (SearchSpace({"a": scipy.stats.poisson(4)})["a"], scipy.stats.poisson(4).cdf),
        (SearchSpace({"a": scipy.stats.binom(9, 0.3)})["a"], scipy.stats.binom(9, 0.3).cdf),
    ],
    ids=lambda x: x.expression() if isinstance(x, Domain) else "",
)
def test_samples_follow_the_distribution(domain, distribution):
    # Kolmogorov-Smirnov at 4,000 samples: one seed in 10,000 goes beyond 2.23 / sqrt(4000).
    assert largest_gap(domain, distribution) < 0.035


def test_the_check_of_distributions_can_fail():
    assert largest_gap(uniform(1e-3, 1), scipy.stats.loguniform(1e-3, 1).cdf) > 0.035
    rounded = scipy.stats.uniform(0.5, 999.5)  # what log integers without their half cells do
    assert largest_gap(lograndint(1, 1000), rounded.cdf) > 0.035


# Each kind


def test_both_ends_of_integers_are_drawn_as_often_as_the_others():
    assert randint(8, 10).values() == [8, 9, 10]
    rng = np.random.default_rng(0)
    counts = np.unique([randint(8, 10).sample(rng) for _ in range(3000)], return_counts=True)[1]
    assert (abs(counts - 1000) < 120).all()


def test_multiples_are_the_decimals_that_they_are_written_as():
    assert quniform(0, 0.3, 0.1).values() == [0.0, 0.1, 0.2, 0.3]
    assert quniform(0.05, 0.29, 0.1).values() == [0.1, 0.2]
    assert quniform(0, 1, 0.1).contains(0.1 + 0.2)
    assert quniform(0, 1, 0.1).canonical(0.1 + 0.2) == 0.3
    assert not quniform(0, 1, 0.1).contains(0.35)
    assert qrandint(5, 30, 8).values() == [8, 16, 24]
    assert qrandint(-9, 9, 8).values() == [-8, 0, 8]
    assert qlograndint(1, 30, 8).values() == [8, 16, 24]
    assert qloguniform(0.001, 1, 0.25).values() == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (uniform(0, 2), [0, 2, 1.5, np.float32(1), np.int64(1)], [True, "1", None, math.nan, 2.1]),
        (loguniform(0.1, 2), [0.1, 2, 1], [0, -1, math.inf, 10**400]),
        (randint(1, 9), [1, 9, np.int32(3)], [0, 10, 3.0, True, "3", None, math.nan]),
        (quniform(0, 1, 0.5), [0, 0.5, 1], [0.25, True, math.inf, math.nan, None, 10**400]),
        (choice([0, "a", None]), [0, 0.0, "a", None, np.str_("a")], [False, "b", [], {}, 1]),
        (choice([True, False]), [True, np.bool_(False)], [1, 0, "True"]),
        (choice([1, 2]), [1, 2.0], [True, 3]),
    ],
)
def test_containment(domain, inside, outside):
    assert [value for value in inside if not domain.contains(value)] == []
    assert [value for value in outside if domain.contains(value)] == []
    for value in outside:
        with pytest.raises(SpaceError, match=r"is outside of .*; give a value inside"):
            domain.to_unit(value)


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        (uniform(0, 1), float),
        (quniform(0, 1, 0.1), float),
        (randint(0, 1), int),
        (choice([1, 2]), int),
        (choice([1, 2.5]), float),
        (choice([None, 2]), int),
        (choice([True, False]), bool),
        (choice([True, 2]), str),
        (ordinal(["a", 1]), str),
        (choice([None]), str),
        (scipy.stats.norm(), float),
        (scipy.stats.poisson(2), int),
        (scipy.stats.binom(2, 0.5), int),
        (3, int),
        (3.5, float),
        (True, bool),
        ("x", str),
        (None, str),
    ],
)
def test_column_types(entry, kind):
    assert SearchSpace({"a": entry}).column_types() == {"a": kind}


def test_grids_of_infinite_domains():
    assert uniform(0, 1).grid(3) == [0.0, 0.5, 1.0]
    assert loguniform(0.01, 1).grid(3) == pytest.approx([0.01, 0.1, 1])
    assert uniform(0, 1).grid(1) == [0.5]
    with pytest.raises(SpaceError, match=r"infinitely many values.*; take grid\(n\)"):
        uniform(0, 1).values()
    with pytest.raises(SpaceError, match=r"infinitely many values.*; take grid\(n\)"):
        uniform(0, 1).at(0)


def test_neighbouring_floats_are_bounds_too():
    for domain in (uniform(0, 5e-324), loguniform(1, 1 + 2**-52), uniform(-1.7e308, 1.7e308)):
        assert domain.contains(domain.from_unit(0.5))
        assert 0 <= domain.to_unit(domain.upper) <= 1


# scipy.stats


def test_common_distributions_become_the_domains_that_they_are():
    space = SearchSpace(
        {
            "a": scipy.stats.uniform(1, 2),
            "b": scipy.stats.loguniform(0.01, 1),
            "c": scipy.stats.randint(32, 256),
            "d": scipy.stats.uniform(loc=-1, scale=3),
        }
    )
    assert space["a"] == uniform(1, 3)
    assert space["b"] == loguniform(0.01, 1)
    assert space["c"] == randint(32, 255)
    assert space["d"] == uniform(-1, 2)
    for name, rv in {"a": scipy.stats.uniform(1, 2), "b": scipy.stats.loguniform(0.01, 1)}.items():
        for u in (0.0, 0.1, 0.77, 1.0):
            assert space[name].from_unit(u) == pytest.approx(rv.ppf(u))


def test_other_distributions_keep_their_inverse():
    domain = SearchSpace({"a": scipy.stats.beta(2, 5)})["a"]
    assert domain.from_unit(0.3) == pytest.approx(scipy.stats.beta(2, 5).ppf(0.3))
    assert domain.to_unit(0.3) == pytest.approx(scipy.stats.beta(2, 5).cdf(0.3))
    assert not domain.contains(1.5)
    poisson = SearchSpace({"a": scipy.stats.poisson(3)})["a"]
    assert [poisson.from_unit(poisson.to_unit(k)) for k in range(12)] == list(range(12))
    assert SearchSpace({"a": scipy.stats.binom(3, 0.5)})["a"].values() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("rv", "message"),
    [
        (scipy.stats.norm, r"norm: .*is frozen.*; call it with them, such as scipy.stats.norm\("),
        (
            scipy.stats.norm(scale=-1),
            r"scipy.stats.norm\(scale=-1\): .*no distribution.*; give valid",
        ),
        (scipy.stats.norm([0, 1], 1), r"scipy.stats.norm: the parameter \[0, 1\] is no number"),
        (scipy.stats.binom(3, 0.5, loc=0.5), "whole numbers.*; give a whole number as loc"),
    ],
)
def test_distributions_that_make_no_domain(rv, message):
    with pytest.raises(SpaceError, match=message):
        SearchSpace({"a": rv})


# What is refused, each with the value, the rule and the fix

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: loguniform(0, 1), r"loguniform\(0, 1\).*above 0; give a positive.*1e-06.*uniform"),
        (
            lambda: lograndint(0, 9),
            r"lograndint\(0, 9\).*above 0; give a positive.* 1, or use rand",
        ),
        (lambda: qloguniform(-1, 1, 0.1), r"qloguniform\(-1, 1\).*above 0; .*quniform"),
        (lambda: uniform(2, 1), r"uniform\(2, 1\).*must be below.*write uniform\(1, 2\)"),
        (lambda: randint(5, 5), r"randint\(5, 5\).*must be below.*plain value 5 for a constant"),
        (lambda: uniform(NAN, 1), "uniform: the bound nan must be finite; give a finite number"),
        (lambda: uniform(0, INF), "uniform: the bound inf must be finite; give a finite number"),
        (lambda: uniform(0, 10**400), "uniform: the bound 10+ must be finite"),
        (lambda: uniform("0", 1), "uniform: the bound '0' is no number; give an int or a float"),
        (lambda: uniform(False, 1), "uniform: the bound False is no number"),
        (
            lambda: randint(1.0, 8),
            "randint: the bound 1.0 is no whole number.*; give one.* uniform",
        ),
        (
            lambda: qrandint(1, 8, 0.5),
            "qrandint: q 0.5 is no whole number.*; .*quniform for floats",
        ),
        (lambda: randint(True, 8), "randint: the bound True is no whole number"),
        (lambda: randint(0, 2**63), r"randint\(0, .*up to 562949953421312 steps from 0.*narrower"),
        (lambda: lograndint(1, 2**41), r"up to 1099511627776 steps from 0.*; give narrower"),
        (
            lambda: quniform(0, 1, 0),
            r"quniform\(0.0, 1.0, 0.0\): the step q must be above 0; give a pos",
        ),
        (lambda: quniform(0, 1, -0.1), "the step q must be above 0"),
        (lambda: quniform(0, 1, NAN), "quniform: q nan must be finite"),
        (lambda: quniform(0.1, 0.2, 0.5), r"quniform\(0.1, 0.2, 0.5\).*none; give a smaller q"),
        (lambda: qrandint(1, 7, 8), r"qrandint\(1, 7, 8\).*none; give a smaller q"),
        (lambda: choice([]), r"choice\(\[\]\): .*at least one value; give some"),
        (lambda: ordinal([]), r"ordinal\(\[\]\): .*at least one value"),
        (
            lambda: choice([1, 2, 1]),
            r"choice\(\[1, 2, 1\]\).*1 equals an earlier one; leave it out",
        ),
        (lambda: choice([1, True]), "True equals an earlier one"),
        (lambda: choice("adam"), r"choice\('adam'\): the values stand in a list.*write choice\("),
        (lambda: choice({"a", "b"}), "the values stand in a list, which has an order"),
        (lambda: choice({"a": 1}), "the values stand in a list"),
        (lambda: choice(3), r"choice\(3\): the values stand in a list"),
        (lambda: choice([(1, 2)]), r"choice: \(1, 2\) is a tuple, but a value is None.*; give one"),
        (lambda: choice([NAN]), "choice: nan is not finite.*; give a finite number, or a string"),
        (
            lambda: choice([2**70]),
            "choice: 1180591620717411303424 does not fit in 64 bits.*smaller",
        ),
    ],
)
def test_domains_that_break_a_rule(make, message):
    with pytest.raises(SpaceError, match=message):
        make()


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ({}, "search_space={}: .*at least one name; give such as"),
        ([("a", 1)], "a search space is a dict of name to domain; give such as"),
        (None, "search_space=None"),
        ({1: uniform(0, 1)}, "the name 1 is a int, but names.* strings; give one such as"),
        ({"learning-rate": 1}, "'learning-rate' is no Python identifier.*such as 'learning_rate'"),
        ({"lambda": 1}, "'lambda' is no Python identifier.*such as 'lambda_'"),
        ({"1st": 1}, "'1st' is no Python identifier.*such as 'x_1st'"),
        ({"": 1}, "'' is no Python identifier.*such as 'x'"),
        ({"a": [1, 2]}, r"a=\[1, 2\] is a list.*write choice\(\[...\]\)"),
        ({"a": {1, 2}}, r"a=.* is a set.*write choice"),
        ({"a": range(3)}, "a=.* is a range.*write choice"),
        ({"a": np.arange(3)}, "a=.* is a ndarray.*write choice"),
        ({"a": {"b": 1}}, "a=.* is a dict, but a value is None, a bool.*; give one"),
        ({"a": object}, "a=.* is a type, but a value"),
        ({"a": uniform}, "a=.* is a function, but a value"),
        ({"a": INF}, "a=inf is not finite.*string such as 'inf'"),
        ({"a": -(2**64)}, "a=-18446744073709551616 does not fit in 64 bits"),
    ],
)
def test_spaces_that_break_a_rule(definition, message):
    with pytest.raises(SpaceError, match=message):
        SearchSpace(definition)


SPACE = SearchSpace(
    {
        "learning_rate": loguniform(1e-5, 1e-1),
        "batch_size": randint(8, 128),
        "epochs": 16,
        "optimizer": choice(["adam", "sgd"]),
    }
)
CONFIG = {"learning_rate": 0.01, "batch_size": 16, "epochs": 16, "optimizer": "sgd"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**CONFIG, "batchsize": 3}, r"'batchsize' is not in the.*\(did you mean 'batch_size'\?\)"),
        (
            {**CONFIG, "zzz": 3},
            "'zzz' is not in the search space; give values for learning_rate, b",
        ),
        ({**CONFIG, 3: 3}, "the name 3 is not in the search space"),
        ({"learning_rate": 0.01}, r"no value for 'batch_size'.*add.*one inside randint\(8, 128\)"),
        ({k: v for k, v in CONFIG.items() if k != "epochs"}, "no value for 'epochs'.*add.*with 16"),
        ({**CONFIG, "batch_size": 4}, r"batch_size=4 is outside of randint\(8, 128\); give.*as 68"),
        ({**CONFIG, "optimizer": "adan"}, r"optimizer='adan' is outside of choice\(\['adam', 'sgd"),
        ({**CONFIG, "epochs": 17}, "epochs=17 is not 16, the constant.*; leave epochs out"),
        ([1], r"\[1\] is no configuration.*; give a value for each of learning_rate"),
    ],
)
def test_configurations_that_break_a_rule(config, message):
    with pytest.raises(SpaceError, match=message):
        SPACE.validate(config)
    with pytest.raises(SpaceError):
        SPACE.to_unit(config)


@pytest.mark.parametrize(
    ("constant", "value"), [(True, 1), (1, True), (None, 0), ("1", 1), (1, "1"), (1, [1])]
)
def test_a_constant_is_not_what_merely_looks_like_it(constant, value):
    space = SearchSpace({"a": constant})
    space.validate({"a": constant})
    with pytest.raises(SpaceError, match="the constant of the search space"):
        space.validate({"a": value})


# The space


def test_a_space_reads_like_the_mapping_it_was_made_of():
    assert list(SPACE) == ["learning_rate", "batch_size", "epochs", "optimizer"]
    assert len(SPACE) == 4
    assert SPACE["epochs"] == 16
    assert SPACE["batch_size"] == randint(8, 128)
    assert list(SPACE.domains) == ["learning_rate", "batch_size", "optimizer"]
    assert SPACE.constants == {"epochs": 16}
    assert SearchSpace(SPACE) == SPACE == dict(SPACE)
    assert eval(repr(SPACE)) == SPACE


def test_sizes():
    assert SPACE.size is None
    assert SearchSpace({"a": 1}).size == 1
    assert SearchSpace({"a": randint(1, 4), "b": choice(["x", "y"]), "c": 0}).size == 8


def test_the_unit_cube_has_a_dimension_for_each_domain():
    point = SPACE.to_unit(CONFIG)
    assert point.shape == (3,)
    assert point.dtype == float
    assert point[0] == pytest.approx(0.75)
    again = SPACE.from_unit(point)
    assert again == {**CONFIG, "learning_rate": pytest.approx(0.01)}
    assert list(again) == list(SPACE)
    assert SPACE.from_unit([-1, 2, 7]) == SPACE.from_unit(np.array([0, 1, 1]))


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ([0.5, 0.5], r"shape \(2,\) does not fit a space with 3 domains; give one of shape \(3,\)"),
        ([[0.5] * 3], r"shape \(1, 3\) does not fit"),
        ([0.5, NAN, 0.5], r"\[0.5, nan, 0.5\] is not finite; give numbers in \[0, 1\]"),
    ],
)
def test_points_that_are_not_of_the_cube(point, message):
    with pytest.raises(SpaceError, match=message):
        SPACE.from_unit(point)


def test_a_string_that_no_file_can_hold():
    with pytest.raises(SpaceError, match="lone surrogate"):
        choice(["\udcff", "a"])


NAMES = st.from_regex(r"p_[a-z]{1,5}", fullmatch=True)


@given(st.dictionaries(NAMES, DOMAINS, min_size=1, max_size=5), st.integers(0, 2**32))
def test_samples_are_valid_and_the_definitions_are_read_back(definition, seed):
    space = SearchSpace({**definition, "k": 1})
    config = space.sample(np.random.default_rng(seed))
    space.validate(config)
    assert list(config) == list(space)
    assert space.canonical(config) == config
    assert space.from_unit(space.to_unit(config)).keys() == config.keys()
    assert SearchSpace.from_definitions(json.loads(json.dumps(space.definitions()))) == space


@given(SCALARS)
def test_constants_are_read_back(constant):
    space = SearchSpace({"a": constant})
    definitions = json.loads(json.dumps(space.definitions()))
    again = SearchSpace.from_definitions(definitions)["a"]
    assert (again, type(again)) == (constant, type(constant))


def test_definitions_are_for_reading():
    assert SPACE.definitions() == {
        "learning_rate": "loguniform(1e-05, 0.1)",
        "batch_size": "randint(8, 128)",
        "epochs": 16,
        "optimizer": "choice(['adam', 'sgd'])",
    }
    assert SearchSpace({"a": "mnist", "b": "16"}).definitions() == {"a": "mnist", "b": "'16'"}


class Colour(str, enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    TWO = 2


def test_numpy_scalars_and_enumerations_become_plain_values():
    space = SearchSpace(
        {
            "a": np.float64(0.5),
            "b": np.int8(3),
            "c": np.bool_(True),
            "d": Colour.RED,
            "e": Number.TWO,
            "f": choice(np.array([1, 2])),
            "g": uniform(np.float32(0), np.int64(1)),
            "h": randint(np.int64(1), np.uint8(9)),
        }
    )
    assert [type(space[name]) for name in "abcde"] == [float, int, bool, str, int]
    assert [type(value) for value in space["f"].values()] == [int, int]
    assert space["g"].expression() == "uniform(0.0, 1.0)"
    assert space["h"].expression() == "randint(1, 9)"
    assert space["d"] == "red"


def test_a_numbered_configuration_of_a_finite_space():
    space = SearchSpace({"a": randint(1, 3), "k": "x", "b": choice(["u", "v"])})
    configs = [space.at(index) for index in range(space.size)]
    assert configs[:3] == [
        {"a": 1, "k": "x", "b": "u"},
        {"a": 1, "k": "x", "b": "v"},
        {"a": 2, "k": "x", "b": "u"},
    ]
    assert len({tuple(config.items()) for config in configs}) == 6


def test_partial_configurations():
    assert SPACE.canonical_part({"batch_size": np.int64(9)}) == {"batch_size": 9}
    assert SPACE.canonical_part({"epochs": 16}) == {}
    with pytest.raises(SpaceError, match="did you mean 'batch_size'"):
        SPACE.canonical_part({"batch_sise": 9})
