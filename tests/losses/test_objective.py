"""The weighted sum of terms, and the way from a method's YAML to it."""

import copy
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from kd.errors import ConfigError
from kd.losses.configure import build_objective
from kd.losses.hard import HardTarget, hard_target_loss
from kd.losses.kd import KD, kd_loss
from kd.losses.objective import Objective
from kd.losses.term import Term
from kd.losses.virtual import VirtualTeacher
from kd.types import Batch, Output

METHODS = sorted(Path(__file__).parents[2].glob("conf/method/*.yaml"))
CE = {"_target_": "kd.losses.hard.HardTarget", "weight": "beta"}
KL = {"_target_": "kd.losses.kd.KD", "weight": "alpha"}


class Constant(Term):
    """A term with a trained parameter, and no default for `size`."""

    symbol = "constant"
    needs_teacher = False

    def __init__(self, size, beta=1.0):
        super().__init__()
        self.value = nn.Parameter(torch.full((), float(size)))
        self.beta = beta

    def forward(self, student, teacher, batch):
        return self.value * 1.0


class Anything(HardTarget):
    """A term that takes any keyword argument."""

    def __init__(self, **options):
        super().__init__()
        self.options = options


def method(**changes):
    """The method `kd`, with changes."""
    return {"name": "kd", "temperature": 4.0, "alpha": 0.9, "beta": None, "terms": {"ce": CE, "kd": KL}} | changes


def outputs(classes=5):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, classes, generator=generator)
    batch = Batch(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 4]), torch.arange(3))
    return Output(student.requires_grad_(), {}), Output(teacher, {}), batch


# --- the sum ----------------------------------------------------------------------------------------------------------


def test_weighted_sum_and_unweighted_terms():
    student, teacher, batch = outputs()
    total, terms = build_objective(method(alpha=0.7))(student, teacher, batch)
    ce = hard_target_loss(student.logits, batch.target)
    kl = kd_loss(student.logits, teacher.logits, temperature=4.0)
    torch.testing.assert_close(total, 0.3 * ce + 0.7 * kl)
    assert list(terms) == ["ce", "kd"]
    torch.testing.assert_close(terms["ce"], ce)
    torch.testing.assert_close(terms["kd"], kl)
    assert total.requires_grad
    assert not any(value.requires_grad for value in terms.values())


def test_term_of_weight_zero_is_computed_but_not_added():
    student, teacher, batch = outputs()
    objective = Objective({"ce": HardTarget(), "broken": Constant(torch.nan)}, {"ce": 1.0, "broken": 0.0})
    total, terms = objective(student, teacher, batch)
    total.backward()
    torch.testing.assert_close(total, hard_target_loss(student.logits, batch.target))
    assert torch.isnan(terms["broken"])
    assert torch.isfinite(student.logits.grad).all()
    assert objective.terms["broken"].value.grad is None


def test_terms_are_trained_and_stored_with_the_objective():
    objective = Objective({"ce": HardTarget(), "fixed": Constant(2.0)}, {"ce": 1, "fixed": 0.5})
    assert list(objective.state_dict()) == ["terms.fixed.value"]
    total, _ = objective(*outputs())
    total.backward()
    assert objective.terms["fixed"].value.grad.item() == 0.5


def test_a_copy_computes_the_same():
    objective = build_objective(method())
    given = outputs()
    assert torch.equal(copy.deepcopy(objective)(*given)[0], objective(*given)[0])


def test_whether_a_teacher_is_needed():
    assert build_objective(method()).needs_teacher
    assert build_objective(method(alpha=0.0)).needs_teacher  # still computed, to be logged
    virtual = Objective({"ce": HardTarget(), "v": VirtualTeacher()}, {"ce": 0.9, "v": 0.1})
    assert not virtual.needs_teacher
    student, _, batch = outputs()
    assert virtual(student, None, batch)[0].isfinite()
    with pytest.raises(ConfigError, match="none was given"):
        build_objective(method())(student, None, batch)


@pytest.mark.parametrize(
    ("terms", "weights", "text"),
    [
        ({"a": HardTarget()}, {"a": 1}, "CE"),
        ({"a": HardTarget()}, {"a": 0.5}, "0.50 CE"),
        ({"a": HardTarget(0.1)}, {"a": 1}, "CE(smoothing 0.1)"),
        ({"a": KD(2.5)}, {"a": 1}, "T^2 KL, T = 2.5"),
        ({"a": HardTarget(), "b": KD(5)}, {"a": 1 - 0.9, "b": 0.9}, "0.10 CE + 0.90 T^2 KL, T = 5"),
        ({"a": HardTarget(), "b": KD(4)}, {"a": 0.975, "b": 0.025}, "0.975 CE + 0.025 T^2 KL, T = 4"),
        ({"a": HardTarget(), "b": KD(4)}, {"a": 0, "b": 1}, "0.00 CE + 1.00 T^2 KL, T = 4"),
        (
            {"a": HardTarget(), "b": KD(4), "c": VirtualTeacher(4)},
            {"a": 1, "b": 9, "c": 0.2},
            "1.00 CE + 9.00 T^2 KL + 0.20 T^2 KL(virtual), T = 4",
        ),
        (
            {"a": HardTarget(), "b": KD(4), "c": VirtualTeacher(20)},
            {"a": 1, "b": 1, "c": 1e-3},
            "1.00 CE + 1.00 T^2 KL (T = 4) + 0.001 T^2 KL(virtual) (T = 20)",
        ),
    ],
)
def test_formula(terms, weights, text):
    assert Objective(terms, weights).describe() == text


@pytest.mark.parametrize(
    ("terms", "weights", "message"),
    [
        ({}, {}, "at least one loss term"),
        ({"a": HardTarget()}, {"b": 1.0}, r"one weight for each of \['a'\], but got weights for \['b'\]"),
        ({"a": HardTarget()}, {"a": -1.0}, "weight of term 'a'"),
        ({"a": HardTarget()}, {"a": 0.0}, "a loss term with a weight above 0"),
        ({"a.b": HardTarget()}, {"a.b": 1.0}, r"cannot have this name: module name can't contain \"\.\""),
        ({"values": HardTarget()}, {"values": 1.0}, "cannot have this name: attribute 'values' already exists"),
    ],
)
def test_impossible_sums(terms, weights, message):
    with pytest.raises(ConfigError, match=message):
        Objective(terms, weights)


# --- from configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_every_method_builds(path):
    text = path.read_text()
    assert text.startswith("# ")
    config = OmegaConf.to_container(OmegaConf.create(text))
    assert config["name"] == path.stem
    assert {"temperature", "alpha", "beta"} <= set(config)
    objective = build_objective(config)
    assert len(objective.terms) == len(config["terms"])
    assert objective.describe()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("kd", "0.10 CE + 0.90 T^2 KL, T = 4"),
        ("hard", "CE"),
        ("mixed_target", "CE(mixed target, alpha 0.5), T = 4"),
        ("tf_virtual", "0.90 CE + 0.10 T^2 KL(virtual), T = 20"),
    ],
)
def test_formula_of_the_logit_methods(name, text):
    path = next(path for path in METHODS if path.stem == name)
    objective = build_objective(OmegaConf.to_container(OmegaConf.load(path)))
    assert objective.describe() == text
    student, teacher, batch = outputs()
    total, _ = objective(student, teacher if objective.needs_teacher else None, batch)
    total.backward()
    assert student.logits.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({}, {"ce": 0.1, "kd": 0.9}),
        ({"alpha": 1}, {"ce": 0.0, "kd": 1.0}),
        ({"alpha": 0}, {"ce": 1.0, "kd": 0.0}),
        ({"beta": 0.5}, {"ce": 0.5, "kd": 0.9}),
        ({"alpha": 30, "beta": 2}, {"ce": 2.0, "kd": 30.0}),
        ({"alpha": 0.25, "temperature": None, "terms": {"ce": CE}}, {"ce": 0.75}),
        ({"alpha": None, "terms": {"ce": CE | {"weight": 3}, "kd": KL | {"weight": 0.25}}}, {"ce": 3.0, "kd": 0.25}),
    ],
)
def test_weights(changes, weights):
    assert build_objective(method(**changes)).weights == pytest.approx(weights)


def test_method_values_reach_the_terms_that_set_none_of_their_own():
    own = KL | {"temperature": 2.0, "weight": 1.0}
    objective = build_objective(method(terms={"ce": CE, "kd": KL, "own": own}))
    assert objective.terms["kd"].temperature == 4.0
    assert objective.terms["own"].temperature == 2.0
    constant = {"_target_": f"{__name__}.Constant", "weight": 1.0, "size": 2}
    objective = build_objective(method(beta=8, terms={"ce": CE, "kd": KL, "c": constant}))
    assert objective.terms["c"].beta == 8


def test_null_leaves_the_terms_default():
    assert build_objective(method(temperature=None)).terms["kd"].temperature == KD().temperature


def test_terms_may_take_any_argument():
    node = {"_target_": f"{__name__}.Anything", "weight": 1.0, "colour": "red"}
    assert build_objective({"name": "any", "terms": {"a": node}}).terms["a"].options == {"colour": "red"}


@pytest.fixture(autouse=True)
def own_code(monkeypatch):
    monkeypatch.setenv("KD_TRUST", __name__)


def test_configuration_stays_as_it_was():
    config = method()
    before = copy.deepcopy(config)
    build_objective(config)
    assert config == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terms": {}}, "`method.terms` to hold at least one loss term"),
        ({"terms": None}, "`method.terms` to hold at least one loss term"),
        ({"terms": {"ce": None}}, "`method.terms.ce` to hold `_target_` and `weight`, but got None"),
        ({"terms": {"ce": {"_target_": CE["_target_"]}}}, "`method.terms.ce.weight` is missing"),
        ({"terms": {"ce": CE | {"weight": "gamma"}}}, "a number of at least 0, or alpha or beta, but got 'gamma'"),
        ({"terms": {"ce": CE | {"weight": -1}}}, "`method.terms.ce.weight` to be a number in"),
        ({"terms": {"ce": CE | {"weight": True}}}, "`method.terms.ce.weight` to be a number in"),
        ({"terms": {"ce": {"weight": 1.0}}}, "`method.terms.ce._target_` must name a class or function, but is None"),
        ({"terms": {"ce": CE | {"_target_": "kd.losses.nope.X"}}}, "Cannot import `method.terms.ce._target_`='kd.los"),
        ({"terms": {"ce": CE | {"_target_": "kd.losses.hard.hard_target_loss"}}}, "is no network, loss term"),
        ({"terms": {"ce": CE | {"_target_": "torch.nn.Linear"}}}, "to be a `Term`, but 'torch.nn.Linear' is not one"),
        ({"terms": {"ce": CE | {"_target_": "kd.losses.term.Term"}}}, "to be a `Term`, but 'kd.losses.term.Term' is"),
        (
            {"terms": {"ce": CE | {"label_smothing": 0.1}}},
            "Unknown argument `method.terms.ce.label_smothing`. Did you mean 'label_smoothing'",
        ),
        ({"terms": {"ce": CE | {"wieght": 1.0}}}, "`method.terms.ce.wieght`. Did you mean 'weight'"),
        ({"terms": {"ce": CE | {"label_smoothing": "much"}}}, "`method.terms.ce`: Expected `label_smoothing`"),
        (
            {"terms": {"c": {"_target_": f"{__name__}.Constant", "weight": 1.0}}},
            "`method.terms.c` lacks size, which Constant needs",
        ),
        ({"temperature": "hot"}, "`method.temperature` to be a number above 0, but got 'hot'"),
        ({"temperature": 0}, "`method.temperature` to be a number above 0"),
        ({"alpha": 2}, r"`method.alpha` to be a number in \[0, 1\], but got 2. For two free .* set `method.beta` too"),
        ({"alpha": -0.1}, "set `method.beta` too"),
        ({"alpha": -0.1, "beta": 1}, r"`method.alpha` to be a number in \[0, inf\]"),
        ({"beta": -1}, "`method.beta` to be a number in"),
        ({"alpha": None}, "`method.terms.ce.weight` is beta, but `method.beta` is not set"),
        ({"alpha": None, "beta": 1}, "`method.terms.kd.weight` is alpha, but `method.alpha` is not set"),
    ],
)
def test_wrong_configuration(changes, message):
    with pytest.raises(ConfigError, match=message):
        build_objective(method(**changes))


@pytest.mark.parametrize(("key", "value"), [("temperature", 4.0), ("alpha", 0.5), ("beta", 0.5)])
def test_setting_that_no_term_uses(key, value):
    config = {"name": "hard", "terms": {"ce": CE | {"weight": 1.0}}, key: value}
    with pytest.raises(ConfigError, match=f"'hard' does not use `method\\.{key}`; it was set to {value:g}\\."):
        build_objective(config)


def test_setting_that_every_term_overrides():
    own = {"ce": CE, "kd": KL | {"temperature": 2.0}}
    with pytest.raises(ConfigError, match=r"does not use `method\.temperature`; it was set to 4"):
        build_objective(method(terms=own))
