"""Domains and constants as text, on the command line."""

from __future__ import annotations

import contextlib

import pytest
import scipy.stats
from hypothesis import given
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


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("uniform(0, 1)", uniform(0, 1)),
        (" loguniform( 1e-5 ,1e-1 ) ", loguniform(1e-5, 1e-1)),
        ("randint(8, 128)", randint(8, 128)),
        ("randint(upper=128, lower=-8)", randint(-8, 128)),
        ("randint (8, upper=+128)", randint(8, 128)),
        ("lograndint(8, 128)", lograndint(8, 128)),
        ("quniform(0, 1, 0.1)", quniform(0, 1, 0.1)),
        ("qloguniform(0.1, 1, q=0.1)", qloguniform(0.1, 1, 0.1)),
        ("qrandint(8, 128, 8)", qrandint(8, 128, 8)),
        ("qlograndint(8, 128, 8)", qlograndint(8, 128, 8)),
        ('choice(["adam", "sgd"])', choice(["adam", "sgd"])),
        ("choice(('adam', 'sgd'))", choice(["adam", "sgd"])),
        ('choice("adam", "sgd")', choice(["adam", "sgd"])),
        ("choice(adam, sgd)", choice(["adam", "sgd"])),
        ("choice(adam)", choice(["adam"])),
        ("choice(values=[1, -2.5, None, false])", choice([1, -2.5, None, False])),
        ("ordinal(16, 64, 256)", ordinal([16, 64, 256])),
        ("scipy.stats.uniform(1, scale=2)", uniform(1, 3)),
        ("scipy.stats.randint(1, 9)", randint(1, 8)),
        ("scipy.stats.norm(0, 1)", SearchSpace({"a": scipy.stats.norm(0, 1)})["a"]),
    ],
)
def test_domains(text, domain):
    assert parse_domain(text) == domain
    assert repr(parse_domain(text)) == repr(domain)


@pytest.mark.parametrize(
    ("text", "constant"),
    [
        ("16", 16),
        (" -16 ", -16),
        ("+3", 3),
        ("0x10", 16),
        ("0.1", 0.1),
        (".5", 0.5),
        ("-.5", -0.5),
        ("1e-3", 1e-3),
        ("true", True),
        ("False", False),
        ("None", None),
        ("none", "none"),
        ("adam", "adam"),
        ('"16"', "16"),
        ("'true'", "true"),
        ("''", ""),
        ("'uniform(0, 1)'", "uniform(0, 1)"),
        ("resnet-18", "resnet-18"),
        ("18-resnet", "18-resnet"),
        ("1.2.3", "1.2.3"),
        ("010", "010"),
        ("1or", "1or"),
        ("--1", "--1"),
        ("/data/mnist (copy)", "/data/mnist (copy)"),
        ("https://example.org/?a=(1)", "https://example.org/?a=(1)"),
        ("two words", "two words"),
        ("uniform", "uniform"),
        ("nan", "nan"),
        ("1j", "1j"),
        ("[broken", "[broken"),
        ("'open", "'open"),
        (r"C:\data", r"C:\data"),
        (r"'\d'", r"\d"),
    ],
)
def test_constants(text, constant):
    value = parse_domain(text)
    assert (value, type(value)) == (constant, type(constant))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty text is no domain.*; give one such as"),
        ("  ", "an empty text"),
        (
            "logunifrom(1, 2)",
            (
                r"'logunifrom' is no domain \(did you mean 'loguniform'\?\); the domains "
                "are choice, lograndint, loguniform, ordinal, qlograndint, qloguniform"
            ),
        ),
        ("eval('1')", "'eval' is no domain.*; the domains are"),
        ("os.system('ls')", "'os.system' is no domain; the domains are"),
        ("__import__('os')", "'__import__' is no domain"),
        ("uniform(0, 1", r"uniform\(0, 1: this is no complete call; write a domain such as"),
        ("uniform(0, 1) + 1", "this is no complete call.*quote the whole"),
        ("uniform(0, 1)(2)", "this is no complete call|is no domain"),
        ("uniform(1)", r"uniform takes \(lower, upper\).*'upper'; write uniform\(lower, upper\)"),
        ("uniform(1, 2, 3)", r"uniform takes \(lower, upper\).*too many"),
        ("uniform(0, high=1)", r"uniform takes \(lower, upper\)"),
        ("uniform(lower=0, lower=1)", "given twice"),
        ("uniform(**{})", r"\*\* is not understood here; write the arguments out"),
        ("uniform(*a)", r"\*a is no plain number, word or string"),
        ("uniform(0, 2 * 3)", r"2 \* 3 is no plain number.*; write a number out"),
        ("uniform(0, a)", "uniform: the bound 'a' is no number"),
        ("uniform(0, true)", "uniform: the bound True is no number"),
        ("choice(resnet-18)", "resnet - 18 is no plain number, word or string.*in quotes"),
        ("choice(a.b)", "a.b is no plain number"),
        ("choice([x for x in y])", "is no plain number"),
        ("choice(b'x')", "is no plain number"),
        ("choice(-true)", "is no plain number"),
        ("choice([1], [2])", r"\[1\] is a list, but a value is None"),
        ("choice()", r"choice\(\[\]\): a choice has at least one value"),
        ("loguniform(0, 1)", r"loguniform\(0, 1\): the lower bound of a log.*above 0"),
        ("[1, 2]", r"\[1, 2\]: a list is no constant; write choice\(\[1, 2\]\)"),
        ("1e999", "the constant 1e999 is not finite"),
        ("1" * 30, "does not fit in 64 bits"),
        ("scipy.stats.nrom(0, 1)", "scipy.stats has no distribution 'nrom'; give one"),
        ("scipy.stats.ttest_ind(0, 1)", "scipy.stats has no distribution 'ttest_ind'"),
        ("scipy.stats.norm.rvs(0, 1)", "scipy.stats has no distribution 'norm.rvs'"),
        ("scipy.stats.beta(1)", "scipy says .*; give the parameters"),
        ("scipy.stats.norm(a)", "scipy says|is no number"),
    ],
)  # fmt: skip
def test_texts_that_are_refused(text, message):
    with pytest.raises(SpaceError, match=message):
        parse_domain(text)


@given(st.text())
def test_any_text_is_a_domain_a_constant_or_refused(text):
    try:
        value = parse_domain(text)
    except SpaceError:
        return
    assert isinstance(value, (Domain, bool, int, float, str, type(None)))


@given(st.text(alphabet="choiceuniform()[]{}'\"\\,.*-+=0123456789 \n#:"))
def test_any_text_near_a_call_is_a_domain_a_constant_or_refused(text):
    for whole in (text, f"choice({text})", f"uniform({text}"):
        with contextlib.suppress(SpaceError):
            parse_domain(whole)


@pytest.mark.parametrize(
    "text", ["(" * 10_000, "choice(" * 10_000, "choice(" + "-" * 50_000 + "1)"]
)
def test_deep_nesting_breaks_nothing(text):
    try:
        value = parse_domain(text)
    except SpaceError:
        return
    assert value == text


@given(st.text(), st.text())
def test_a_choice_of_any_strings_is_read_back(first, second):
    if first != second:
        domain = choice([first, second])
        assert parse_domain(domain.expression()) == domain
