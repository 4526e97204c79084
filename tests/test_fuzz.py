"""Every reader of a file that may be damaged: whatever is in it, a result or one of our own errors comes out."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import Workplace, attempt, change_json
from kd.errors import UserError

READERS = ("result.json", "metrics.csv", "examples.json", "config.yaml", "sweep.json", "meta.json", "safetensors", "pt")
FEW = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", READERS)
def test_only_our_own_errors_come_out(place, name):
    assert set(place.readers()) == set(READERS)
    place.readers()[name][2]()  # the file is a valid one
    seen = set()

    @FEW
    @given(st.randoms(use_true_random=False))
    def each(draw):
        seen.add(attempt(place, name, draw))

    @FEW
    @given(st.binary(max_size=300))
    def bytes_alone(content):
        path, _, read = place.readers()[name]
        whole = path.read_bytes()
        path.write_bytes(content)
        try:
            read()
        except UserError:
            pass
        finally:
            path.write_bytes(whole)

    each()
    bytes_alone()
    assert "refused" in seen or name in ("config.yaml", "sweep.json"), "whose readers show what can be read"
    place.readers()[name][2]()


def test_the_changes_are_many_and_repeatable():
    content = b'{"a": [1, 2, {"b": "c"}], "d": 0.5}'
    made = {change_json(random.Random(seed), content) for seed in range(200)}
    assert len(made) > 100
    assert change_json(random.Random(7), content) == change_json(random.Random(7), content)


def test_a_reader_that_raises_anything_else_is_found(place, monkeypatch):
    monkeypatch.setattr(Workplace, "_read_run", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attempt(place, "result.json", random.Random(0))
