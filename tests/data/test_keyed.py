"""Order and draws are functions of their keys, equal to an independent calculation, and look random."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from keyed_reference import below as reference_below
from keyed_reference import draws as reference_draws
from keyed_reference import mix as reference_mix

from kd.data.keyed import BatchShares, KeyedSampler, Share, below, draws, key_seed, mix

WORD = st.integers(0, 2**32 - 1)
ROWS = torch.arange(1000, 1137)  # 137 of them, and none is its own position
INDEX = torch.arange(20_000)
plainly = settings(max_examples=50, deadline=None, derandomize=True, database=None)


class TestDraws:
    @plainly
    @given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
    def test_mix_is_the_published_hash(self, values):
        assert mix(torch.tensor(values)).tolist() == [reference_mix(value) for value in values]

    @plainly
    @given(WORD, st.integers(0, 10_000), st.lists(st.integers(0, 2**31), min_size=1, max_size=5), st.integers(1, 4))
    def test_equal_to_plain_integers(self, seed, epoch, index, count):
        found = draws(seed, epoch, torch.tensor(index), count)
        assert found.shape == (len(index), count)
        assert found.tolist() == [reference_draws(seed, epoch, one, count) for one in index]

    @plainly
    @given(st.lists(WORD, min_size=1, max_size=20), st.integers(1, 1000))
    def test_below_scales_without_bias_of_rounding(self, values, limit):
        found = below(torch.tensor(values), limit).tolist()
        assert found == [reference_below(value, limit) for value in values]
        assert all(0 <= value < limit for value in found)

    def test_the_ends_of_the_range(self):
        assert below(torch.tensor([0, 2**32 - 1]), 9).tolist() == [0, 8]

    @pytest.mark.parametrize("limit", [2, 5, 9])
    @pytest.mark.parametrize("column", [0, 1, 2])
    def test_uniform(self, limit, column):
        """Chi-square of 20,000 draws below the 99.9% point of its distribution."""
        counts = torch.bincount(below(draws(0, 0, INDEX, 3)[:, column], limit), minlength=limit)
        expected = len(INDEX) / limit
        assert ((counts - expected) ** 2 / expected).sum() < {2: 10.83, 5: 18.47, 9: 26.12}[limit]

    def test_every_bit_is_fair(self):
        bits = (draws(7, 3, INDEX, 1) >> torch.arange(32)) & 1
        assert (bits.double().mean(0) - 0.5).abs().max() < 4 * 0.5 / len(INDEX) ** 0.5

    @pytest.mark.parametrize(
        "other",
        [
            draws(1, 0, INDEX, 3)[:, 0],  # the next seed
            draws(0, 1, INDEX, 3)[:, 0],  # the next epoch
            draws(0, 0, INDEX + 1, 3)[:, 0],  # the next image
            draws(0, 0, INDEX, 3)[:, 1],  # the next draw
            draws(1, 0, INDEX - 1, 3)[:, 2],
        ],
    )
    def test_another_key_gives_unrelated_draws(self, other):
        ours = draws(0, 0, INDEX, 3)[:, 0]
        assert (ours == other).sum() <= 1  # 20,000 / 2^32 are expected
        assert torch.corrcoef(torch.stack([ours, other]).double())[0, 1].abs() < 4 / len(INDEX) ** 0.5

    def test_nothing_else_matters(self):
        """Neither the batch an image is in nor what was drawn before."""
        whole = draws(5, 2, INDEX, 3)
        torch.rand(3)
        shuffled = torch.randperm(len(INDEX))
        assert torch.equal(draws(5, 2, INDEX[shuffled], 3), whole[shuffled])
        assert torch.equal(draws(5, 2, INDEX[17:18], 3), whole[17:18])

    def test_key_seeds_differ(self):
        seeds = {key_seed(seed, epoch) for seed in range(30) for epoch in range(30)}
        assert len(seeds) == 900
        assert all(0 <= seed < 2**32 for seed in seeds)


class TestOrder:
    def order(self, seed=0, epoch=0):
        sampler = KeyedSampler(ROWS, seed)
        sampler.set_epoch(epoch)
        return sampler.order()

    def test_a_shuffled_permutation_of_the_rows(self):
        order = self.order()
        assert torch.equal(order.sort().values, ROWS)
        assert not torch.equal(order, ROWS)

    def test_a_function_of_seed_and_epoch(self):
        first = self.order(3, 4)
        torch.rand(5)
        assert torch.equal(self.order(3, 4), first)
        assert len({tuple(self.order(seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}) == 25

    def test_drawing_an_order_leaves_the_global_state_alone(self):
        before = torch.get_rng_state()
        self.order()
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("world", [1, 2, 3, 8])
    def test_processes_share_out_every_batch(self, world):
        """Process r has rows r, r + world, ... of each batch: dealing them back in turns restores the batch."""
        sampler = KeyedSampler(ROWS, 1)
        sampler.set_epoch(2)
        shares = [list(BatchShares(sampler, 16, Share(rank, world))) for rank in range(world)]
        assert {len(share) for share in shares} == {len(BatchShares(sampler, 16, Share(0, world)))} == {9}
        for place, batch in enumerate(self.order(1, 2).split(16)):
            parts = [share[place] for share in shares]
            assert [parts[at % world][at // world] for at in range(len(batch))] == batch.tolist()

    def test_iterating_gives_the_order(self):
        sampler = KeyedSampler(ROWS, 0)
        sampler.set_epoch(6)
        assert list(sampler) == self.order(0, 6).tolist()
        assert len(sampler) == 137
