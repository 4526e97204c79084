"""What a network around another must survive; used by the tests of each."""

import copy

import torch
from safetensors.torch import load_file
from torch import nn

from kd.store import save_weights
from kd.taps import Tapped


def trained(network, shape, steps=3):
    """Take some steps of training on random images and labels."""
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        image = torch.randn(8, *shape, generator=generator)
        loss = nn.functional.cross_entropy(network(image), torch.arange(8))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network


def learned(network, shape):
    """Whether 40 steps on one batch halve its loss."""
    image, target = torch.randn(8, *shape), torch.arange(8)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(network(image), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses[-1] < losses[0] / 2


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def check_copies(make, shape):
    """A copy answers the same, shares nothing, and trains without the original noticing."""
    network = trained(make(), shape)
    image = torch.randn(2, *shape)
    expected = network.eval()(image)
    twin = copy.deepcopy(network)
    assert torch.equal(twin(image), expected)
    assert torch.equal(twin(image), twin(image))
    trained(twin.train(), shape)
    assert torch.equal(network(image), expected)
    assert not same(network, twin)
    addresses = [value.data_ptr() for value in network.state_dict().values()]
    assert len(set(addresses)) == len(addresses)


def check_a_round_trip(make, shape, folder):
    """What a safetensors file holds makes the same network of a new one; returns the file's names."""
    network = trained(make(), shape).eval()
    save_weights(network, folder / "weights.safetensors", {})
    state = load_file(folder / "weights.safetensors")
    twin = make()
    twin.load_state_dict(state)
    image = torch.randn(2, *shape)
    assert torch.equal(twin.eval()(image), network(image))
    return list(state)


def check_taps(make, shape):
    """Read through taps, the network trains and answers as it does without."""
    torch.manual_seed(3)
    plain = make()
    tapped = Tapped(copy.deepcopy(plain), ["network.layer2.relu", "network.layer1.conv", "network.relu"])
    assert tapped._forwards, tapped._untraceable
    image = torch.randn(8, *shape)
    for _ in range(4):
        assert torch.equal(tapped(image).logits, plain(image))
    assert same(tapped.network, plain)
    found = tapped.eval()(image)
    assert torch.equal(found.logits, plain.eval()(image))
    assert found.taps["network.layer2.relu"].min() == 0 > found.taps["network.layer1.conv"].min()


def check_a_resume(make, shape):
    """Training from a saved state goes on as if it had not been interrupted."""
    whole = trained(make(), shape)
    resumed = make()
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert same(trained(whole, shape), trained(resumed, shape))
