"""Contrastive representation distillation against the paper's probabilities, one candidate at a time."""

import math
from collections import Counter

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kd.errors import ConfigError
from kd.losses.crd import CRD, Memory, contrastive_loss
from kd.losses.term import Setting
from kd.types import Batch, Output

T = 0.5


def oracle(student, memory, candidates, temperature=T, normalizer=None):
    """The loss and the normaliser, from probabilities."""
    size, negatives = len(memory), len(candidates[0]) - 1
    exponentials = []
    for row, chosen in zip(student, candidates, strict=True):
        products = [sum(a * b for a, b in zip(row, memory[c], strict=True)) for c in chosen]
        exponentials.append([math.exp(product / temperature) for product in products])
    flat = [value for row in exponentials for value in row]
    z = normalizer or size * sum(flat) / len(flat)
    total = 0.0
    for row in exponentials:
        h = [value / z / (value / z + negatives / size) for value in row]
        total -= math.log(h[0])
        for k in range(1, len(h)):
            total -= math.log(1 - h[k])
    return total / len(student), z


def example(batch=3, rows=7, dimension=4, negatives=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student = nn.functional.normalize(torch.randn(batch, dimension, generator=generator, dtype=dtype), dim=1)
    memory = nn.functional.normalize(torch.randn(rows, dimension, generator=generator, dtype=dtype), dim=1)
    candidates = torch.randint(rows, (batch, 1 + negatives), generator=generator)
    return student.requires_grad_(), memory, candidates


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 4),
    rows=st.integers(2, 9),
    dimension=st.integers(1, 5),
    negatives=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_value_and_gradient(batch, rows, dimension, negatives, seed):
    student, memory, candidates = example(batch, rows, dimension, negatives, seed)
    value = contrastive_loss(student, memory, candidates, temperature=T)
    expected, z = oracle(student.tolist(), memory.tolist(), candidates.tolist())
    assert value.item() == pytest.approx(expected, rel=1e-10)

    fixed = contrastive_loss(student, memory, candidates, temperature=T, log_normalizer=torch.tensor(z).double().log())
    [gradient] = torch.autograd.grad(fixed, student)
    step = 1e-6
    for b in range(batch):
        for d in range(dimension):
            around = []
            for sign in (1, -1):
                moved = student.tolist()
                moved[b][d] += sign * step
                around.append(oracle(moved, memory.tolist(), candidates.tolist(), normalizer=z)[0])
            assert gradient[b, d].item() == pytest.approx((around[0] - around[1]) / (2 * step), rel=1e-4, abs=1e-6)


def test_the_normaliser_is_a_constant():
    student, memory, candidates = example()
    [estimated] = torch.autograd.grad(contrastive_loss(student, memory, candidates, temperature=T), student)
    z = torch.tensor(oracle(student.tolist(), memory.tolist(), candidates.tolist())[1], dtype=torch.float64)
    given = contrastive_loss(student, memory, candidates, temperature=T, log_normalizer=z.log())
    torch.testing.assert_close(estimated, torch.autograd.grad(given, student)[0])


def test_order_of_negatives_does_not_matter_and_the_memory_gets_no_gradient():
    student, memory, candidates = example()
    memory.requires_grad_()
    value = contrastive_loss(student, memory, candidates)
    shuffled = torch.cat([candidates[:, :1], candidates[:, 1:].flip(1)], 1)
    torch.testing.assert_close(contrastive_loss(student, memory, shuffled), value)
    value.backward()
    assert memory.grad is None


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_extremes_stay_finite(batch, scale):
    student = torch.full((batch, 3), scale, requires_grad=True)
    memory = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0], [0.0, 0.0, 0.0]])
    for candidates in ([[0, 1, 2]], [[1, 0, 0]]):
        value = contrastive_loss(student, memory, torch.tensor(candidates * batch))
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()


def test_float32_inside_autocast():
    student, memory, candidates = example(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = student @ torch.eye(4)
        value = contrastive_loss(low, memory, candidates, temperature=T)
    assert low.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(oracle(low.tolist(), memory.tolist(), candidates.tolist())[0], rel=1e-5)


def test_bad_arguments():
    student, memory, candidates = example()
    with pytest.raises(ConfigError, match=r"temperature.*above 0"):
        contrastive_loss(student, memory, candidates, temperature=0)
    with pytest.raises(ConfigError, match=r"\(3, 4\) and \(7, 3\)"):
        contrastive_loss(student, memory[:, :3], candidates)
    with pytest.raises(ConfigError, match="one negative at least"):
        contrastive_loss(student, memory, candidates[:, :1])


# --- the term ---------------------------------------------------------------------------------------------------------

INDEX = torch.tensor([20, 3, 7, 11, 4, 9, 15, 2])  # an image's index is no row; two classes of three, one of two
LABEL = torch.tensor([5, 0, 5, 0, 2, 5, 0, 2])
LABEL_OF = dict(zip(INDEX.tolist(), LABEL.tolist(), strict=True))


def outputs(batch=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = {"student": 6, "teacher": 9}
    taps = {name: torch.randn(batch, size, generator=generator) for name, size in sizes.items()}
    return [Output(torch.zeros(batch, 6), {"v": tap}) for tap in taps.values()]


def built(transfer_set=lambda: (INDEX, LABEL), seed=3, **kwargs):
    term = CRD("v", "v", **{"negatives": 30, "dimension": 4, "temperature": T, **kwargs})
    term.resolve({}, {})
    student, teacher = outputs(batch=2)
    term.build(Setting(student, teacher, nn.Identity(), nn.Identity(), 6, seed, transfer_set=transfer_set))
    return term


def batch_of(index):
    return Batch(torch.zeros(len(index), 1), torch.tensor([LABEL_OF[i] for i in index.tolist()]), index)


def embedded(linear, feature):
    return nn.functional.normalize(linear(feature), dim=1)


def test_negatives_are_all_images_of_other_classes_and_only_those():
    term = built(negatives=2000)
    image_of = {row: image for image, row in enumerate(term.index_to_row.tolist()) if row >= 0}
    assert sorted(image_of) == list(range(len(INDEX)))
    for image, chosen in zip(INDEX.tolist(), term.candidates(INDEX).tolist(), strict=True):
        assert image_of[chosen[0]] == image
        counts = Counter(image_of[row] for row in chosen[1:])
        others = [other for other, label in LABEL_OF.items() if label != LABEL_OF[image]]
        assert sorted(counts) == sorted(others)
        for other in others:  # uniform: five standard deviations
            assert abs(counts[other] - 2000 / len(others)) < 5 * math.sqrt(2000 / len(others))


def test_negatives_follow_from_seed_epoch_and_index():
    term = built()
    drawn = term.candidates(INDEX)
    torch.testing.assert_close(term.candidates(INDEX.flip(0)).flip(0), drawn)  # whatever the batch
    term.begin_epoch(1)
    assert not term.candidates(INDEX).equal(drawn)
    term.begin_epoch(0)
    assert term.candidates(INDEX).equal(drawn)
    assert not built(seed=4).candidates(INDEX).equal(drawn)


def test_two_steps_of_the_term():
    term, index = built(momentum=0.25), INDEX[:4]
    (student, teacher), batch = outputs(), batch_of(INDEX[:4])
    normalizers = None
    for epoch in range(2):
        term.begin_epoch(epoch)
        before = {name: term.get_submodule(f"{name}_memory").rows.clone() for name in ("student", "teacher")}
        candidates = term.candidates(index).tolist()
        ours, theirs = embedded(term.embed_student, student.taps["v"]), embedded(term.embed_teacher, teacher.taps["v"])
        parts = [
            oracle(embedding.tolist(), before[other].tolist(), candidates, normalizer=z)
            for embedding, other, z in zip(
                (ours, theirs), ("teacher", "student"), normalizers or (None, None), strict=True
            )
        ]
        normalizers = normalizers or [z for _, z in parts]  # of the first batch, for good
        assert term(student, teacher, batch).item() == pytest.approx(sum(loss for loss, _ in parts), rel=1e-5)

        rows = [row[0] for row in candidates]
        for name, embedding in (("student", ours), ("teacher", theirs)):
            expected = before[name].clone()
            for row, new in zip(rows, embedding.detach(), strict=True):
                moved = 0.25 * before[name][row] + 0.75 * new
                expected[row] = moved / moved.norm()
            torch.testing.assert_close(term.get_submodule(f"{name}_memory").rows, expected)


def test_evaluation_leaves_the_memories_alone():
    term = built().eval()
    state = {name: value.clone() for name, value in term.state_dict().items()}
    assert term(*outputs(), batch_of(INDEX[:4])).isfinite()
    for name, value in term.state_dict().items():
        torch.testing.assert_close(value, state[name], equal_nan=True)


def test_training_lowers_it_for_both_networks_without_a_gradient_into_the_teacher():
    term, (student, teacher) = built(), outputs()
    feature = student.taps["v"].requires_grad_()
    teacher.taps["v"].requires_grad_()
    optimizer = torch.optim.SGD([*term.parameters(), feature], lr=0.1)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = term(student, teacher, batch_of(INDEX[:4]))
        loss.backward()
        assert all(p.grad.abs().sum() > 0 for p in (feature, term.embed_student.weight, term.embed_teacher.weight))
        optimizer.step()
        values.append(loss.item())
    assert teacher.taps["v"].grad is None
    assert values[-1] < values[0]


def test_a_memory_starts_with_rows_of_about_unit_length():
    rows = Memory(4000, 128).rows
    assert rows.abs().max() <= math.sqrt(3 / 128)
    assert rows.norm(dim=1).mean().item() == pytest.approx(1.0, abs=0.01)


def test_checkpoint_holds_what_was_learnt_and_no_tables():
    names = {name.split(".")[0] for name in built().state_dict()}
    assert names == {"embed_student", "embed_teacher", "student_memory", "teacher_memory"}


@pytest.mark.parametrize(
    ("name", "value"), [("negatives", 0), ("temperature", 0.0), ("momentum", 1.0), ("momentum", -0.1), ("dimension", 0)]
)
def test_hyper_parameters_are_checked(name, value):
    with pytest.raises(ConfigError, match=f"`{name}`.*{value}"):
        CRD(**{name: value})


@pytest.mark.parametrize(
    ("transfer_set", "message"),
    [
        (None, "does not say which images"),
        (lambda: (INDEX, torch.zeros_like(LABEL)), "two classes or more, but the transfer set has 1"),
        (lambda: (INDEX - 3, LABEL), "at least 0"),
        (lambda: (INDEX // 2, LABEL), "index of its own"),
    ],
)
def test_a_transfer_set_that_cannot_be_remembered(transfer_set, message):
    with pytest.raises(ConfigError, match=message):
        built(transfer_set)


# --- two processes ----------------------------------------------------------------------------------------------------


class Step(nn.Module):
    """The term with its batch cut out of the whole, so that DistributedDataParallel averages its gradients."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.term = built()

    def forward(self, part):
        student, teacher = (Output(o.logits[part], {"v": o.taps["v"][part]}) for o in outputs())
        return self.term(student, teacher, batch_of(INDEX[:4][part]))


def two_steps(step, module, part):
    optimizer = torch.optim.SGD(step.parameters(), lr=0.1)
    for epoch in range(2):
        step.term.begin_epoch(epoch)
        optimizer.zero_grad()
        module(part).backward()
        optimizer.step()
    return step.state_dict()


def one_of_two(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    step = Step()
    state = two_steps(step, DistributedDataParallel(step), slice(0, 1) if rank == 0 else slice(1, 4))
    torch.save(state, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one_with_the_whole_batch(tmp_path):
    mp.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    step = Step()
    whole = two_steps(step, step, slice(0, 4))
    for name, value in whole.items():
        torch.testing.assert_close(first[name], value)
        assert second[name].equal(first[name])
