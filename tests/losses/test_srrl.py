"""Softmax regression representation learning against two means of squares, in loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.errors import ConfigError
from kd.losses.srrl import SRRL, srrl_loss
from kd.losses.term import Setting
from kd.nets.mlp import MLP
from kd.nets.resnet_cifar import CifarResNet
from kd.taps import Tapped
from kd.types import Batch, Output

FACTS = {"num_classes": 5, "image_shape": [3, 8, 8]}
B = 4


def mean_square(a, b):
    pairs = list(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    return sum((x - y) ** 2 for x, y in pairs) / len(pairs)


def oracle(feature, logits, teacher_feature, teacher_logits):
    return mean_square(feature, teacher_feature) + mean_square(logits, teacher_logits)


def example(batch=B, dimension=3, classes=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, dimension), (batch, classes)) * 2
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 5), dimension=st.integers(1, 5), classes=st.integers(1, 5), seed=st.integers(0, 1000))
def test_value_and_gradient(batch, dimension, classes, seed):
    feature, logits, teacher_feature, teacher_logits = given = example(batch, dimension, classes, seed)
    value = srrl_loss(*given)
    assert value.item() == pytest.approx(oracle(*given), rel=1e-12)
    value.backward()
    for ours, theirs in ((feature, teacher_feature), (logits, teacher_logits)):
        for slope, at, to in zip(ours.grad.flatten(), ours.flatten(), theirs.flatten(), strict=True):
            assert slope.item() == pytest.approx(2 * (at - to).item() / ours.numel(), rel=1e-9)
        assert theirs.grad is None
    assert srrl_loss(teacher_feature, teacher_logits, teacher_feature, teacher_logits).item() == 0


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("fill", [0.0, 1e4, -1e4])
def test_extremes_stay_finite(batch, fill):
    feature, logits, *teacher = (torch.full((batch, 3), sign * fill, requires_grad=True) for sign in (1, 1, -1, -1))
    value = srrl_loss(feature, logits, *teacher)
    value.backward()
    assert value.isfinite()
    assert feature.grad.isfinite().all()
    assert logits.grad.isfinite().all()


def test_float32_inside_autocast():
    given = example(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = [tensor.bfloat16() for tensor in given]
        value = srrl_loss(*low)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(oracle(*low), rel=1e-5)


def test_shapes_must_agree():
    feature, logits, teacher_feature, teacher_logits = example()
    with pytest.raises(ConfigError, match=r"features.*\(4, 2\)"):
        srrl_loss(feature[:, :2], logits, teacher_feature, teacher_logits)
    with pytest.raises(ConfigError, match=r"logits.*\(4, 2\)"):
        srrl_loss(feature, logits[:, :2], teacher_feature, teacher_logits)


# --- the term ---------------------------------------------------------------------------------------------------------

PAIRS = {
    "maps": (
        lambda: CifarResNet(6, (4, 4, 6), **FACTS),
        "layer2",
        lambda: CifarResNet(8, (8, 8, 8, 12), **FACTS),
        "layer3",
    ),
    "vectors": (lambda: MLP([6], **FACTS), "hidden.0", lambda: MLP([9, 7], **FACTS), "hidden.1"),
}
BATCH = Batch(torch.zeros(B, *FACTS["image_shape"]), torch.zeros(B, dtype=torch.int64), torch.arange(B))


def built(kind):
    make, layer, make_teacher, teacher_layer = PAIRS[kind]
    student, teacher = Tapped(make(), [layer]), Tapped(make_teacher().eval(), [teacher_layer])
    term = SRRL(layer, teacher_layer)
    term.resolve({}, {})
    image = torch.randn(2, *FACTS["image_shape"])
    outputs = student(image), teacher(image)
    term.build(Setting(*outputs, student.network, teacher.network, 5, teacher_roles={"classifier": "fc"}))
    return term, student, teacher


@pytest.mark.parametrize("kind", PAIRS)
def test_term_puts_the_connected_feature_through_the_teachers_classifier(kind):
    term, student, teacher = built(kind)
    term.eval()
    image = torch.randn(B, *FACTS["image_shape"])
    ours, theirs = student(image), teacher(image)
    features = []
    for feature in (term.connector(*ours.taps.values()), *theirs.taps.values()):
        flat = feature.flatten(2) if feature.ndim == 4 else feature.unsqueeze(2)
        features.append(torch.stack([flat[:, :, i] for i in range(flat.shape[2])]).sum(0) / flat.shape[2])
    weight, bias = teacher.network.fc.weight.detach(), teacher.network.fc.bias.detach()
    logits = torch.stack([torch.stack([row @ w + b for w, b in zip(weight, bias, strict=True)]) for row in features[0]])
    expected = oracle(features[0].detach(), logits.detach(), features[1].detach(), theirs.logits.detach())
    assert term(ours, theirs, BATCH).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", PAIRS)
def test_training_lowers_it_and_leaves_the_teacher_alone(kind):
    term, student, teacher = built(kind)
    assert {name.split(".")[0] for name in term.state_dict()} == {"connector"}
    image = torch.randn(B, *FACTS["image_shape"])
    theirs = teacher(image)
    optimizer = torch.optim.SGD([*term.parameters(), *student.parameters()], lr=0.05)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = term(student(image), theirs, BATCH)
        loss.backward()
        assert all(p.grad is not None for p in term.parameters())
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < values[0]
    assert all(p.grad is None for p in teacher.parameters())


def test_term_inside_autocast():
    term, student, teacher = built("maps")
    image = torch.randn(B, *FACTS["image_shape"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = term(student(image), teacher(image), BATCH)
    assert value.dtype == torch.float32
    assert value.isfinite()


def test_teacher_without_a_classifier_of_its_last_feature():
    term, student, teacher = built("maps")
    image = torch.randn(2, *FACTS["image_shape"])
    outputs = student(image), teacher(image)
    with pytest.raises(ConfigError, match=r"taps\.classifier"):
        term.build(Setting(*outputs, student.network, teacher.network, 5))
    logits_only = Output(outputs[1].logits, {})
    with pytest.raises(ConfigError, match="gives only logits"):
        term.build(Setting(outputs[0], logits_only, student.network, None, 5))
