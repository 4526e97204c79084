"""The space of a search: Hydra's syntax in, Optuna's distributions and overrides out."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from kd.sweep.plan import read_arguments
from kd.sweep.space import Dimension, Interval, interval, listed, probes


def dimension(text: str) -> Dimension:
    arguments = read_arguments(["-m", text])
    return interval(arguments.continuous[0]) if arguments.continuous else listed(arguments.axes[0])


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("method.temperature=interval(1,20)", FloatDistribution(1, 20)),
        ("trainer.max_epochs=int(interval(1,20))", IntDistribution(1, 20)),
        ("optim.optimizer.lr=tag(log,interval(1e-4,1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("trainer.max_epochs=tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("trainer.max_epochs=range(2,11,4)", IntDistribution(2, 10, step=4)),
        ("trainer.max_epochs=range(10,1,-4)", IntDistribution(2, 10, step=4)),
        ("method.alpha=0.1,0.5,0.9", CategoricalDistribution((0.1, 0.5, 0.9))),
        ("method.alpha=range(0.1,0.5,0.2)", CategoricalDistribution((0.1, 0.30000000000000004))),
        ("method=kd,dkd", CategoricalDistribution(("kd", "dkd"))),
        ("trainer.compile=true,false", CategoricalDistribution((True, False))),
        ("data.omit=[],[3]", CategoricalDistribution(("[]", "[3]"))),
        ("method.beta=1,null", CategoricalDistribution((1, "null"))),
        ("method.temperature=1,1.0", CategoricalDistribution(("1", "1.0"))),  # to Optuna 1 and 1.0 are the same
    ],
)
def test_the_command_lines_syntax_becomes_optunas(text, distribution):
    assert dimension(text).distribution() == distribution


@pytest.mark.parametrize(
    "text",
    ["method.alpha=0.1,0.5,0.9", "method=kd,dkd", "data.omit=[],[3]", "method.beta=1,null", "seed=range(2,11,4)"],
)
def test_every_listed_value_is_set_as_it_was_written(text):
    one = dimension(text)
    distribution = one.distribution()
    values = distribution.choices if isinstance(distribution, CategoricalDistribution) else range(2, 11, 4)
    assert [one.override(value) for value in values] == list(one.ends)


def test_values_of_an_interval_are_short_and_stay_inside():
    linear = Interval("t", 1.0, 20.0, log=False)
    assert linear.override(13.284719283746551) == "t=13.28"
    assert Interval("t", 0.9, 0.909, log=False).override(0.90123456789) == "t=0.901235"
    assert Interval("lr", 1e-4, 1e-1, log=True).override(0.00123456789) == "lr=0.001235"
    narrow = Interval("t", 1.23456, 2.34567, log=False)
    assert narrow.override(1.23456) == "t=1.235" and narrow.override(2.34567) == "t=2.34567"
    assert Interval("t", 3.0, 3.0, log=False).override(3.0) == "t=3.0"
    assert Interval("n", 1, 9, log=False).override(4) == "n=4"


def test_probes_have_every_choice_with_every_end_and_every_value():
    given = ["-m", "method=kd,dkd", "method.temperature=interval(1,20)", "method.alpha=0.1,0.5,0.9"]
    arguments = read_arguments(given)
    dimensions = [*map(listed, arguments.axes), *map(interval, arguments.continuous)]
    found = probes(dimensions)
    assert len(set(found)) == len(found)
    for method in ("method=kd", "method=dkd"):
        beside = {override for probe in found if method in probe for override in probe}
        assert {"method.temperature=1.0", "method.temperature=20.0"} < beside
        assert {"method.alpha=0.1", "method.alpha=0.5", "method.alpha=0.9"} < beside
