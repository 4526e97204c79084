"""Latency: what is run, how often, and that the run's own threads come back."""

import torch
from torch import nn

from kd.nets import latency as module
from kd.nets.latency import latency


class Slow(nn.Module):
    """Takes as long as a clock of its own says."""

    def __init__(self, clock, seconds_per_image):
        super().__init__()
        self.clock, self.cost, self.seen = clock, seconds_per_image, []

    def forward(self, image):
        self.seen.append((len(image), torch.get_num_threads()))
        self.clock.now += self.cost * len(image) * (100 if len(self.seen) == 1 else 1)  # the first pass is slow
        return image


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


def test_the_median_of_repeated_passes_without_the_first_on_one_thread(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        network = Slow(clock, 0.004)
        found = latency([network], (1, 2, 2), torch.device("cpu"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert found == {"1": 4.0, "256": 1024.0, "device": "cpu", "threads": 1, "repeats": 3} or (
        abs(found["1"] - 4) < 1e-6 and abs(found["256"] - 1024) < 1e-6
    )
    assert (found["device"], found["threads"], found["repeats"]) == ("cpu", 1, 3)
    sizes = [size for size, _ in network.seen]
    assert sizes.count(256) == 4, "over the budget after the least number of passes"
    assert sizes.count(1) == 51, "within the budget the greatest number"
    assert {threads for _, threads in network.seen} == {1}


def test_an_ensemble_takes_as_long_as_its_members(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    found = latency([Slow(clock, 0.01), Slow(clock, 0.02)], (1, 2, 2), torch.device("cpu"))
    assert abs(found["1"] - 30) < 1e-6
