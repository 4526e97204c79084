"""FSP against its equations in loops over pairs of channels and pixels."""

import pytest
import torch
from feature_checks import FeatureLossChecks, drawn, drawn_features, step
from hypothesis import given

from kd.errors import ConfigError
from kd.losses.fsp import FSP, fsp_loss


def max_pooled(plane, height, width):
    tall, wide = len(plane) // height, len(plane[0]) // width
    return [
        [max(plane[y * tall + i][x * wide + j] for i in range(tall) for j in range(wide)) for x in range(width)]
        for y in range(height)
    ]


def flow(first, last):
    height, width = min(len(first[0]), len(last[0])), min(len(first[0][0]), len(last[0][0]))
    matrix = []
    for a in first:
        for b in last:
            p, q = max_pooled(a, height, width), max_pooled(b, height, width)
            total = sum(p[y][x] * q[y][x] for y in range(height) for x in range(width))
            matrix.append(total / (height * width))
    return matrix


def section_oracle(student_first, student_last, teacher_first, teacher_last):
    squares = []
    for maps in zip(student_first, student_last, teacher_first, teacher_last, strict=True):
        ours, theirs = flow(*maps[:2]), flow(*maps[2:])
        squares += [(a - b) ** 2 for a, b in zip(ours, theirs, strict=True)]
    return sum(squares) / len(squares)


# The checks hand over one feature for each network: here the two ends of a section, one after the other.


def split_loss(student, teacher):
    return fsp_loss(student[:, :2], student[:, 2:], teacher[:, :2], teacher[:, 2:])


def split_oracle(student, teacher):
    first, last = (
        [[image[part] for image in maps] for part in (slice(2), slice(2, None))] for maps in (student, teacher)
    )
    return section_oracle(*first, *last)


def pooled_loss(student, teacher):
    return fsp_loss(student[:, :, :, :2], student[:, :1, ::2, ::2], teacher[:, :, :, :2], teacher[:, :1, ::2, ::2])


def pooled_oracle(student, teacher):
    ends = []
    for maps in (student, teacher):
        ends.append([[[row[:2] for row in plane] for plane in image] for image in maps])
        ends.append([[[row[::2] for row in plane[::2]] for plane in image[:1]] for image in maps])
    return section_oracle(*ends)


class TestOneSize(FeatureLossChecks):
    student_shape, teacher_shape = (2, 5, 2, 3), (2, 5, 3, 2)
    loss, oracle = staticmethod(split_loss), staticmethod(split_oracle)


class TestPooled(FeatureLossChecks):
    student_shape, teacher_shape = (2, 2, 4, 4), (2, 2, 4, 4)
    loss, oracle = staticmethod(pooled_loss), staticmethod(pooled_oracle)


@drawn
@given(drawn_features(4, "same", "same", most=3))
def test_any_features(features):
    expected = split_oracle(*[feature.tolist() for feature in features])
    assert split_loss(*features).item() == pytest.approx(expected, abs=1e-12)


def test_the_end_of_a_section_may_be_the_larger_one_and_of_any_size():
    small, large = torch.randn(2, 3, 2, 2).double(), torch.randn(2, 4, 6, 4).double()
    args = small, large, 2 * small, large
    expected = section_oracle(*[maps.tolist() for maps in args])
    assert fsp_loss(*args).item() == pytest.approx(expected)
    odd = torch.randn(2, 4, 5, 7).double()  # windows overlap: rows 0-2 and 2-4, columns 0-3 and 3-6
    pooled = torch.stack([odd[..., i, j].amax(-1).amax(-1) for i, j in WINDOWS], -1).view(2, 4, 2, 2)
    torch.testing.assert_close(fsp_loss(small, odd, 2 * small, odd), fsp_loss(small, pooled, 2 * small, pooled))


def _window(rows, columns):
    return torch.arange(*rows).unsqueeze(1), torch.arange(*columns)


WINDOWS = [_window(r, c) for r in ((0, 3), (2, 5)) for c in ((0, 4), (3, 7))]


def test_sections_are_summed():
    ours = [torch.randn(2, c, 4, 4) for c in (2, 3, 4)]
    theirs = [torch.randn(2, c, 4, 4) for c in (2, 3, 4)]
    both = fsp_loss(ours[:-1], ours[1:], theirs[:-1], theirs[1:])
    expected = sum(fsp_loss(ours[i], ours[i + 1], theirs[i], theirs[i + 1]) for i in range(2))
    torch.testing.assert_close(both, expected)


def test_order_of_pixels_changes_nothing():
    student, teacher = torch.randn(2, 5, 3, 3).double(), torch.randn(2, 5, 3, 3).double()
    torch.testing.assert_close(split_loss(student.flip(2).transpose(2, 3), teacher), split_loss(student, teacher))


def test_what_does_not_fit_is_refused():
    maps, wider = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    with pytest.raises(ConfigError, match=r"channels .*student \(2, 3, 4, 4\) to \(2, 5, 4, 4\)"):
        fsp_loss(maps, wider, maps, maps)
    with pytest.raises(ConfigError, match="2 and 1"):
        fsp_loss([maps, maps], [maps], [maps, maps], [maps])
    with pytest.raises(ConfigError, match="2 and 1"):
        fsp_loss([maps, maps], [maps, maps], [maps], [maps])


def test_term_maps_the_students_channels_where_they_differ():
    term = FSP()
    value, taps = step(
        term, {"a": (3, 8, 8), "b": (5, 4, 4), "c": (6, 4, 4)}, {"x": (4, 9, 9), "y": (5, 4, 4), "z": (8, 3, 3)}
    )
    assert value > 0
    assert all(feature.grad.abs().max() > 0 for feature in taps.values())
    shapes = [tuple(p.shape) for p in term.parameters()]
    assert shapes == [(4, 3, 1, 1), (4,), (8, 6, 1, 1), (8,)]
    assert all(p.grad.abs().max() > 0 for p in term.parameters())


def test_term_starts_at_the_stem_when_asked():
    term = FSP(["stem", "stages"], ["stem", "stages"])
    roles = {"stem": "first", "stages": ["a", "b"]}
    term.resolve(roles, {**roles, "stages": ["a", "b", "c"]})
    assert term.student_layers == ("first", "a", "b")
    assert term.teacher_layers == ("a", "b", "c")


def test_term_needs_two_maps():
    with pytest.raises(ConfigError, match="at least two layers"):
        step(FSP(), {"a": (3, 4, 4)}, {"b": (3, 4, 4), "c": (3, 4, 4)})
    with pytest.raises(ConfigError, match="FSP compares feature maps"):
        step(FSP(), {"a": (3,), "b": (3,)}, {"a": (3,), "b": (3,)})
