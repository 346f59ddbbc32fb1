"""The matrix of a campaign: its grammar, its mistakes, the instances it makes."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avmm import ConfigError
from avmm.testing.campaign.matrix import Instance, Scenario, instances, parse

ONE = Scenario("crash.py::test_one", {"fault": "none", "size": 8})
TWO = Scenario("crash.py::test_two", {"rate": 0.5})


def test_values_ranges_and_several_texts() -> None:
    assert parse(["seeds=1..3,fault=none|torn", "size=8..24..8|64"]) == {
        "seed": ["1", "2", "3"],
        "fault": ["none", "torn"],
        "size": ["8", "16", "24", "64"],
    }
    assert parse([]) == {}
    assert parse([" seed = -2..0 "]) == {"seed": ["-2", "-1", "0"]}
    assert parse(["url=a..b,v=1..2..x"]) == {"url": ["a..b"], "v": ["1..2..x"]}, "only whole numbers make a range"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seeds", "cannot read 'seeds' in the matrix: write KEY=VALUES, with values as a|b|c or 1..100"),
        ("fault=none,torn", "cannot read 'torn' in the matrix"),
        ("=3", "cannot read '=3' in the matrix"),
        ("", "cannot read '' in the matrix"),
        ("fault=a||b", "fault has an empty value"),
        ("fault=", "fault has an empty value"),
        ("fault=a,fault=b", "the matrix has fault twice"),
        ("seed=1,seeds=2", "the matrix has seed twice"),
        ("seeds=one", "a seed is a whole number, not 'one'"),
        ("seeds=9..1", "the range 9..1 of seed is empty"),
        ("size=1..9..0", "the range 1..9..0 of size is empty"),
        ("seeds=1..99999999999", "the range 1..99999999999 of seed has more than 1000000 values"),
        ("seeds=1..5000,size=1..5000", "the matrix has 25000000 instances of each test, which is more than 1000000"),
    ],
)
def test_a_mistake_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        parse([text])


@given(st.lists(st.text(), max_size=4))
def test_any_text_is_a_matrix_or_one_sentence(texts: list[str]) -> None:
    matrix: dict[str, list[str]] = {}
    with contextlib.suppress(ConfigError):
        matrix = parse(texts)
    assert all(matrix.values())


def test_each_test_gets_its_own_parameters_and_every_seed() -> None:
    made = instances([ONE, TWO], parse(["fault=none|torn,seeds=1..2,rate=0.1"]))
    assert [(one.test, one.seed, one.parameters) for one in made] == [
        (ONE.id, 1, {"fault": "none"}), (ONE.id, 2, {"fault": "none"}), (ONE.id, 1, {"fault": "torn"}), (ONE.id, 2, {"fault": "torn"}),
        (TWO.id, 1, {"rate": "0.1"}), (TWO.id, 2, {"rate": "0.1"}),
    ]  # fmt: skip
    assert [one.number for one in made] == list(range(6))


def test_without_a_matrix_each_test_runs_once() -> None:
    assert instances([ONE], {}) == [Instance(0, ONE.id, 0, {})]


def test_unknown_parameters_and_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no test has the parameter 'falt' \(did you mean 'fault'\?\); there are: fault, rate, size"):
        instances([ONE, TWO], parse(["falt=torn"]))
    with pytest.raises(ConfigError, match="the parameter size is a whole number, not 'big'"):
        instances([ONE], parse(["size=8|big"]))
    with pytest.raises(ConfigError, match=r"declare it with @pytest.mark.avmm_params\(size=...\)"):
        instances([Scenario("plain.py::test_it")], parse(["size=8"]))


def test_an_instance_travels_as_json_and_prints_its_command() -> None:
    (one,) = instances([ONE], parse(["fault=a b;c,seed=7"]))
    assert Instance.from_dict(one.as_dict()) == one
    assert one.variant == "fault=a b;c seed=7"
    assert one.command == "python -m pytest crash.py::test_one --avmm-seed 7 --avmm-param 'fault=a b;c'"
