"""Knowledge review against block means in loops, and its fusion against the paper's sums, pixel by pixel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kd.errors import ConfigError
from kd.losses.review import Review, review_loss
from kd.losses.term import Setting
from kd.types import Batch, Output


def pooled(channel, size):
    """Means over the windows [floor(i h / size), ceil((i + 1) h / size)) of a list of rows."""
    height, width = len(channel), len(channel[0])
    means = []
    for i in range(size):
        for j in range(size):
            rows = range(i * height // size, -(-(i + 1) * height // size))
            columns = range(j * width // size, -(-(j + 1) * width // size))
            means.append(sum(channel[r][c] for r in rows for c in columns) / (len(rows) * len(columns)))
    return means


def mean_square(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)


def oracle(student, teacher):
    total = mean_square(student.flatten().tolist(), teacher.flatten().tolist())
    weights, weight = [1.0], 1.0
    for size in (4, 2, 1):
        if size >= min(student.shape[2:]):
            continue
        weight /= 2
        maps = [[channel for image in x.tolist() for channel in image] for x in (student, teacher)]
        values = [[mean for channel in channels for mean in pooled(channel, size)] for channels in maps]
        total += weight * mean_square(*values)
        weights.append(weight)
    return total / sum(weights)


def example(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=dtype)
    return student.requires_grad_(), teacher


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 2),
    channels=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_value_of_any_map(batch, channels, height, width, seed):
    student, teacher = example(batch, channels, height, width, seed=seed)
    assert review_loss(student, teacher).item() == pytest.approx(oracle(student, teacher), rel=1e-10)


@pytest.mark.parametrize("shape", [(1, 2, 5, 6), (2, 1, 2, 2), (1, 3, 1, 1)])
def test_gradient(shape):
    student, teacher = example(*shape)
    [gradient] = torch.autograd.grad(review_loss(student, teacher), student)
    step = 1e-6
    for place in range(student.numel()):
        around = []
        for sign in (1, -1):
            moved = student.detach().clone()
            moved.view(-1)[place] += sign * step
            around.append(oracle(moved, teacher))
        assert gradient.flatten()[place].item() == pytest.approx((around[0] - around[1]) / (2 * step), abs=1e-7)


def test_weights_of_the_scales():
    ones = torch.ones(1, 1, 8, 8)
    checkerboard = torch.ones(8, 8)
    checkerboard[::2, ::2] = checkerboard[1::2, 1::2] = -1
    assert review_loss(ones, torch.zeros_like(ones)).item() == pytest.approx(1.0)
    assert review_loss(checkerboard[None, None], torch.zeros_like(ones)).item() == pytest.approx(1 / 1.875)


def test_stages_add_up_and_agreement_is_the_minimum():
    pairs = [example(2, 3, 8, 8), example(2, 4, 3, 3, seed=1)]
    ours, theirs = zip(*pairs, strict=True)
    assert review_loss(ours, theirs).item() == pytest.approx(sum(oracle(*pair) for pair in pairs), rel=1e-10)
    assert review_loss(theirs, theirs).item() == 0


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("fill", [0.0, 1e4, -1e4])
def test_extremes_stay_finite(batch, fill):
    student = torch.full((batch, 2, 8, 8), fill, requires_grad=True)
    teacher = (-student.detach()).requires_grad_()
    value = review_loss(student, teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    assert teacher.grad is None


def test_float32_inside_autocast():
    student, teacher = example(2, 3, 8, 8, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = student.bfloat16()
        value = review_loss(low, teacher)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(oracle(low.double(), teacher.double()), rel=1e-5)


def test_bad_shapes():
    with pytest.raises(ConfigError, match=r"\(2, 3, 4, 4\) and teacher \(2, 3, 2, 2\)"):
        review_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2))
    with pytest.raises(ConfigError, match=r"maps.*\(2, 3\)"):
        review_loss(torch.zeros(2, 3), torch.zeros(2, 3))


# --- the term ---------------------------------------------------------------------------------------------------------

STUDENT = [(4, 16, 16), (6, 6, 8), (5, 4, 4)]
TEACHER = [(7, 16, 16), (8, 8, 8), (9, 8, 8)]
BATCH = Batch(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64), torch.arange(4))


def outputs(batch=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shapes in (STUDENT, TEACHER):
        taps = {f"s{i}": torch.randn(batch, *shape, generator=generator) for i, shape in enumerate(shapes)}
        made.append(Output(torch.zeros(batch, 3), taps))
    return made


def built():
    term = Review()
    term.resolve(*[{"stages": ["s0", "s1", "s2"]}] * 2)
    term.build(Setting(*outputs(batch=2), nn.Identity(), nn.Identity(), 3))
    return term


def nearest(feature, size):
    height, width = feature.shape[2:]
    rows = [i * height // size[0] for i in range(size[0])]
    columns = [j * width // size[1] for j in range(size[1])]
    return torch.stack([torch.stack([feature[:, :, r, c] for c in columns], -1) for r in rows], -2)


def test_term_fuses_from_the_deepest_stage():
    term = built().eval()
    student, teacher = outputs()
    total, deeper = 0.0, None
    for i in (2, 1, 0):
        fusion, feature, theirs = term.fusions[i], student.taps[f"s{i}"], teacher.taps[f"s{i}"]
        assert fusion.reduce[0].weight.shape == (5, STUDENT[i][0], 1, 1)
        fused = fusion.reduce(feature)
        if deeper is not None:
            deeper = nearest(deeper, feature.shape[2:])
            kernel, bias = fusion.attention.weight[:, :, 0, 0], fusion.attention.bias
            mixed = torch.zeros_like(fused)
            for y in range(fused.shape[2]):
                for x in range(fused.shape[3]):
                    both = torch.cat([fused[:, :, y, x], deeper[:, :, y, x]], 1)
                    ours, theirs_share = torch.sigmoid(both @ kernel.T + bias).unbind(1)
                    mixed[:, :, y, x] = ours[:, None] * fused[:, :, y, x] + theirs_share[:, None] * deeper[:, :, y, x]
            fused = mixed
        deeper = nearest(fused, theirs.shape[2:])
        total += oracle(fusion.expand(deeper).detach(), theirs)
    assert term(student, teacher, BATCH).item() == pytest.approx(total, rel=1e-4)


def test_training_lowers_it():
    term = built()
    student, teacher = outputs()
    features = [tap.requires_grad_() for tap in student.taps.values()]
    optimizer = torch.optim.SGD([*term.parameters(), *features], lr=0.1)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = term(student, teacher, BATCH)
        loss.backward()
        assert all(p.grad is not None for p in (*term.parameters(), *features))
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < values[0]


def test_term_needs_maps():
    term = Review("v", "v")
    term.resolve({}, {})
    vector = Output(torch.zeros(2, 3), {"v": torch.zeros(2, 3)})
    with pytest.raises(ConfigError, match="feature maps"):
        term.build(Setting(vector, vector, nn.Identity(), nn.Identity(), 3))
