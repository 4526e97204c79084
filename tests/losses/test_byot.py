"""Be your own teacher against its sum of three losses, in loops over Python floats."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kd.errors import ConfigError
from kd.losses.byot import BYOT, byot_loss
from kd.losses.term import Setting
from kd.nets.mlp import MLP
from kd.nets.resnet_cifar import CifarResNet
from kd.taps import Tapped
from kd.types import Batch, Output

GIVEN = {"temperature": 2.0, "alpha": 0.3, "beta": 0.01}


def probabilities(row, temperature=1.0):
    exponentials = [math.exp(value / temperature) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def oracle(shallow_logits, shallow_features, deepest_logits, deepest_feature, target, *, temperature, alpha, beta):
    total = 0.0
    for logits, features in zip(shallow_logits, shallow_features, strict=True):
        for b, label in enumerate(target.tolist()):
            hard = -math.log(probabilities(logits[b].tolist())[label])
            soft = 0.0
            p_deepest = probabilities(deepest_logits[b].tolist(), temperature)
            for p, q in zip(p_deepest, probabilities(logits[b].tolist(), temperature), strict=True):
                soft += temperature**2 * p * math.log(p / q)
            distance = 0.0
            for ours, theirs in zip(features[b].tolist(), deepest_feature[b].tolist(), strict=True):
                distance += (ours - theirs) ** 2
            total += ((1 - alpha) * hard + alpha * soft + beta * distance) / len(target)
    return total


def example(stages=2, batch=3, classes=4, dimension=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(stages + 1, batch, classes, generator=generator, dtype=dtype)
    features = torch.randn(stages + 1, batch, dimension, generator=generator, dtype=dtype)
    *shallow, deepest = (x.clone().requires_grad_() for x in logits)
    *shallow_features, deepest_feature = (x.clone().requires_grad_() for x in features)
    return shallow, shallow_features, deepest, deepest_feature, torch.randint(classes, (batch,), generator=generator)


@settings(max_examples=30, deadline=None)
@given(
    stages=st.integers(1, 3),
    batch=st.integers(1, 4),
    classes=st.integers(2, 5),
    dimension=st.integers(1, 4),
    temperature=st.floats(0.5, 5),
    alpha=st.floats(0, 1),
    beta=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_value(stages, batch, classes, dimension, seed, **given):
    arguments = example(stages, batch, classes, dimension, seed)
    assert byot_loss(*arguments, **given).item() == pytest.approx(oracle(*arguments, **given), rel=1e-9)


def test_gradient():
    arguments = example()
    shallow, features, deepest, deepest_feature, _ = arguments
    byot_loss(*arguments, **GIVEN).backward()
    step = 1e-6
    for tensor in (*shallow, *features):
        flat = tensor.data.view(-1)
        for place in range(len(flat)):
            around = []
            for sign in (1, -1):
                flat[place] += sign * step
                around.append(oracle(*arguments, **GIVEN))
                flat[place] -= sign * step
            assert tensor.grad.flatten()[place].item() == pytest.approx((around[0] - around[1]) / (2 * step), abs=1e-7)
    assert deepest.grad is None
    assert deepest_feature.grad is None


def test_one_classifier_needs_no_list():
    [logits], [features], *rest = example(stages=1)
    torch.testing.assert_close(byot_loss(logits, features, *rest), byot_loss([logits], [features], *rest))


def test_soft_targets_and_features_vanish_at_agreement():
    _, _, deepest, feature, target = example()
    assert byot_loss(deepest, feature, deepest, feature, target, alpha=1.0, beta=1.0).item() == pytest.approx(0)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("fill", [0.0, 1e4, -1e4])
def test_extremes_stay_finite(batch, fill):
    logits = torch.tensor([[fill, -fill, 0.0]] * batch, requires_grad=True)
    feature = torch.full((batch, 4), fill, requires_grad=True)
    value = byot_loss(logits, feature, -logits, -feature, torch.zeros(batch, dtype=torch.int64))
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    assert feature.grad.isfinite().all()


def test_float32_inside_autocast():
    shallow, features, *deepest, target = example(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = [[x.bfloat16() for x in shallow], [x.bfloat16() for x in features], *(x.bfloat16() for x in deepest)]
        value = byot_loss(*low, target, **GIVEN)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(oracle(*low, target, **GIVEN), rel=1e-5)


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.0), ("alpha", 1.5), ("alpha", -0.1), ("beta", -1.0)])
def test_hyper_parameters_are_checked(name, value):
    for make in (BYOT, lambda **given: byot_loss(*example(), **given)):
        with pytest.raises(ConfigError, match=f"`{name}`.*{value:g}"):
            make(**{name: value})


def test_shapes_must_agree():
    shallow, features, deepest, deepest_feature, target = example()
    with pytest.raises(ConfigError, match="2 and 1"):
        byot_loss(shallow, features[:1], deepest, deepest_feature, target)
    with pytest.raises(ConfigError, match=r"\(3, 5\) and \(3, 2\)"):
        byot_loss(shallow, features, deepest, deepest_feature[:, :2], target)


# --- the term ---------------------------------------------------------------------------------------------------------

FACTS = {"num_classes": 4, "image_shape": [3, 16, 16]}
NETWORKS = {
    "maps": (
        lambda: CifarResNet(8, (4, 4, 6, 8), **FACTS),
        {"stages": ["layer1", "layer2", "layer3"], "embedding": "flatten"},
    ),
    "vectors": (lambda: MLP([9, 7], **FACTS), {"stages": ["hidden.0", "hidden.1"], "embedding": "hidden.1"}),
}
BATCH = Batch(torch.randn(4, *FACTS["image_shape"]), torch.tensor([0, 1, 2, 1]), torch.arange(4))


def built(kind):
    make, roles = NETWORKS[kind]
    term = BYOT(**GIVEN)
    term.resolve(roles, {})
    student = Tapped(make(), term.student_layers)
    term.build(Setting(student(BATCH.image[:2]), None, student.network, None, 4))
    return term, student


@pytest.mark.parametrize("kind", NETWORKS)
def test_term_teaches_every_early_stage(kind):
    term, student = built(kind)
    assert not term.needs_teacher
    student.eval()
    term.eval()
    output = student(BATCH.image)
    stages, embedding = NETWORKS[kind][1]["stages"], output.taps[NETWORKS[kind][1]["embedding"]]
    logits, features = [], []
    for head, stage in zip(term.heads, stages[:-1], strict=True):
        feature = head["neck"](output.taps[stage])
        if kind == "maps":
            assert feature.shape == output.taps[stages[-1]].shape
            feature = torch.stack([torch.stack([c.sum() / c.numel() for c in maps]) for maps in feature])
        features.append(feature)
        logits.append(head["classifier"](feature))
    expected = oracle(logits, features, output.logits, embedding, BATCH.target, **GIVEN)
    assert term(output, None, BATCH).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", NETWORKS)
def test_training_lowers_it(kind):
    term, student = built(kind)
    optimizer = torch.optim.SGD([*term.parameters(), *student.parameters()], lr=0.05)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = term(student(BATCH.image), None, BATCH)
        loss.backward()
        assert all(p.grad is not None for p in term.parameters())
        assert student.network.fc.weight.grad is None  # the last classifier teaches only
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < values[0]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [([(3,)], "one stage only"), ([(2, 4, 4), (3,)], r"one kind.*\(2, 4, 4\) and \(3,\)")],
)
def test_students_without_early_stages(shapes, message):
    term = BYOT()
    names = [f"s{i}" for i in range(len(shapes))]
    term.resolve({"stages": names, "embedding": names[-1]}, {})
    output = Output(torch.zeros(2, 4), {name: torch.zeros(2, *s) for name, s in zip(names, shapes, strict=True)})
    with pytest.raises(ConfigError, match=message):
        term.build(Setting(output, None, nn.Identity(), None, 4))
