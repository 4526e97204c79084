"""SimKD: its loss against a mean of squares in loops, and the network that it trains."""

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.errors import ConfigError
from kd.losses.simkd import ReusedClassifier, SimKD, simkd_loss
from kd.losses.term import Setting
from kd.nets.mlp import MLP
from kd.nets.resnet_cifar import CifarResNet
from kd.nets.vgg import VGG
from kd.taps import Tapped
from kd.types import Batch, Output

CLASSES = 5


def oracle(student, teacher):
    total, count = 0.0, 0
    for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        total += (a - b) ** 2
        count += 1
    return total / count


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 4), min_size=2, max_size=4), seed=st.integers(0, 1000))
def test_value_and_gradient(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    teacher.requires_grad_()
    value = simkd_loss(student, teacher)
    assert value.item() == pytest.approx(oracle(student, teacher), rel=1e-12)
    value.backward()
    for moved, at, to in zip(student.grad.flatten(), student.flatten(), teacher.flatten(), strict=True):
        assert moved.item() == pytest.approx(2 * (at - to).item() / student.numel(), rel=1e-9)
    assert teacher.grad is None
    assert simkd_loss(teacher, teacher).item() == 0


@pytest.mark.parametrize("fill", [0.0, 1e4, -1e4])
def test_extremes_stay_finite(fill):
    student = torch.full((1, 2, 1, 1), fill, requires_grad=True)
    value = simkd_loss(student, -student.detach())
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_float32_for_half_precision():
    student, teacher = torch.randn(2, 3, 4, dtype=torch.bfloat16)
    value = simkd_loss(student, teacher)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(oracle(student, teacher), rel=1e-6)


def test_shapes_must_agree():
    with pytest.raises(ConfigError, match=r"\(2, 3\) and teacher \(2, 4\)"):
        simkd_loss(torch.zeros(2, 3), torch.zeros(2, 4))


# --- the network that it trains ---------------------------------------------------------------------------------------

FACTS = {"num_classes": CLASSES, "image_shape": [3, 16, 16]}


def resnet(*width, depth=8):
    return {"_target_": "kd.nets.resnet_cifar.CifarResNet", "depth": depth, "width": list(width), **FACTS}


STUDENTS = {  # configuration, final layer, linear layers behind it
    "same size": (resnet(8, 8, 16, 24), "layer3", ["fc"]),
    "larger": (resnet(8, 8, 16, depth=6), "layer2", ["fc"]),
    "smaller": (resnet(8, 8, 8, 8, 8, depth=10), "layer4", ["fc"]),
    "hidden classifier": ({"_target_": "kd.nets.cnn3.CNN3", "width": [4, 4, 8], "hidden": 7, **FACTS}, "layer3", None),
}


def setting(student, student_layers, teacher, teacher_layer, classifier="fc", **kwargs):
    image = torch.randn(2, *FACTS["image_shape"])
    outputs = [
        Tapped(network.eval(), layers)(image)
        for network, layers in ((student, student_layers), (teacher, [teacher_layer]))
    ]
    roles = {"classifier": classifier} if classifier else {}
    return Setting(*outputs, student, teacher, CLASSES, student_roles=roles, teacher_roles=roles, **kwargs)


def trained_on(model, layer, teacher, teacher_layer, **kwargs):
    """The term, and the network that it trains in place of the one that `model` describes."""
    term = SimKD(layer, teacher_layer, **kwargs)
    term.resolve({}, {})
    made = setting(instantiate(model), [layer], teacher, teacher_layer)
    wrapped = term.wrap(model, made)
    network = instantiate(wrapped)
    term.build(setting(network, [], teacher, teacher_layer))
    return term, network, wrapped


@pytest.mark.parametrize("name", STUDENTS)
def test_trains_a_network_with_the_teachers_classifier(name):
    model, layer, behind = STUDENTS[name]
    teacher = CifarResNet(8, (8, 8, 16, 32), **FACTS).eval().requires_grad_(False)
    term, network, wrapped = trained_on(model, layer, teacher, "layer3")
    assert wrapped["drop"] == (behind or ["fc1", "fc2"])
    assert not [n for n, _ in network.network.named_parameters() if any(d in n.split(".") for d in wrapped["drop"])]
    torch.testing.assert_close(network.classifier.state_dict(), teacher.fc.state_dict())

    image = torch.randn(6, *FACTS["image_shape"])
    batch = Batch(image, torch.zeros(6, dtype=torch.int64), torch.arange(6))
    output, theirs = network(image), Tapped(teacher, ["layer3"])(image)
    transferred = output.taps["transferred"]
    assert transferred.shape[1] == 32
    pooled = [[sum(c.flatten().tolist()) / c.numel() for c in maps] for maps in transferred]
    torch.testing.assert_close(output.logits, teacher.fc(torch.tensor(pooled)))
    expected = theirs.taps["layer3"]
    if name in ("smaller", "hidden classifier"):
        blocks = [[m.mean().item() for half in c.chunk(2) for m in half.chunk(2, 1)] for maps in expected for c in maps]
        expected = torch.tensor(blocks).reshape(6, 32, 2, 2)
    assert term(output, theirs, batch).item() == pytest.approx(oracle(transferred, expected), rel=1e-4)

    network.train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.05)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = term(network(image), theirs, batch)
        loss.backward()
        assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < values[0]
    torch.testing.assert_close(network.classifier.state_dict(), teacher.fc.state_dict())
    assert not list(term.parameters())


def test_the_projector_is_narrower_in_the_middle():
    teacher = CifarResNet(8, (8, 8, 16, 32), **FACTS)
    _, network, _ = trained_on(*STUDENTS["same size"][:2], teacher, "layer3", factor=4)
    shapes = [tuple(p.shape) for p in network.projector.parameters() if p.ndim == 4]
    assert shapes == [(8, 24, 1, 1), (8, 8, 3, 3), (32, 8, 1, 1)]


def test_vectors():
    teacher = MLP([12, 9], **FACTS)
    model = {"_target_": "kd.nets.mlp.MLP", "hidden": [6], **FACTS}
    term, network, wrapped = trained_on(model, "hidden.0", teacher, "hidden.1")
    assert wrapped["drop"] == ["fc"]
    image = torch.randn(4, *FACTS["image_shape"])
    theirs = Tapped(teacher, ["hidden.1"])(image)
    output = network(image)
    torch.testing.assert_close(output.logits, teacher.fc(output.taps["transferred"]))
    batch = Batch(image, torch.zeros(4, dtype=torch.int64), torch.arange(4))
    assert term(output, theirs, batch).item() == pytest.approx(
        oracle(output.taps["transferred"], theirs.taps["hidden.1"]), rel=1e-5
    )


def test_wrapping_again_gives_the_same_network():
    teacher = CifarResNet(8, (8, 8, 16, 32), **FACTS)
    _, network, wrapped = trained_on(*STUDENTS["larger"][:2], teacher, "layer3")
    again = instantiate(wrapped)
    again.load_state_dict(network.state_dict())
    image = torch.randn(2, *FACTS["image_shape"])
    torch.testing.assert_close(again.eval()(image).logits, network.eval()(image).logits)
    assert isinstance(again, ReusedClassifier)


@pytest.mark.parametrize(
    ("teacher", "layer", "classifier", "message"),
    [
        (lambda: CifarResNet(8, (8, 8, 16, 32), **FACTS), "layer3", None, "taps.classifier"),
        (lambda: CifarResNet(8, (8, 8, 16, 32), **FACTS), "layer2", "fc", "16 channels and 'fc' takes 32"),
        (lambda: CifarResNet(8, (8, 8, 16, 32), **FACTS), "layer3", "bn1", "'bn1' is no nn.Linear"),
        (lambda: VGG(8, 3, [64], **FACTS), "pool4", "fc", "512 channels and 'fc' takes 64"),
        (lambda: CifarResNet(8, (8, 8, 32, 32), **FACTS), "layer2", "fc", "something lies between"),
    ],
)
def test_teachers_whose_classifier_cannot_be_reused(teacher, layer, classifier, message):
    student = CifarResNet(8, (8, 8, 16, 24), **FACTS)
    term = SimKD("layer3", layer)
    term.resolve({}, {})
    with pytest.raises(ConfigError, match=message):
        term.wrap({}, setting(student, ["layer3"], teacher(), layer, classifier))


def test_bad_hyper_parameters():
    with pytest.raises(ConfigError, match=r"`factor`.*0"):
        SimKD(factor=0)


def test_needs_its_own_network():
    teacher = CifarResNet(8, (8, 8, 16, 32), **FACTS)
    with pytest.raises(ConfigError, match="got a CifarResNet"):
        SimKD("layer3", "layer3").build(setting(teacher, ["layer3"], teacher, "layer3"))


def test_reads_the_projected_feature():
    student = Output(torch.zeros(2, CLASSES), {"layer3": torch.zeros(2, 3, 4, 4)})
    term = SimKD("layer3", "layer3")
    term.resolve({}, {})
    with pytest.raises(ConfigError, match="transferred"):
        term(student, student, Batch(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2)))
