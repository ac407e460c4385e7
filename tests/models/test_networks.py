"""The network that regularizers are built from: published size, receptive field, no coupling of samples."""

import pytest
import torch

from elder.models.networks import DnCNN
from tests.solvers.problems import draw


@pytest.mark.parametrize(("channels", "expected"), [(1, 408_000), (3, 410_304)])
def test_size_is_the_published_one(channels, expected):
    """Released ELDER networks with a noise map: 12 biased 3×3 layers of width 64 and a bias-free output."""
    network = DnCNN(channels, features=64, depth=12, noise_map=True)
    assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_receptive_field_has_one_pixel_of_radius_a_layer(depth):
    network, x = DnCNN(1, 4, depth).double(), draw(1, 1, 17, 17)
    bumped = x.clone()
    bumped[0, 0, 8, 8] += 1
    rows, columns = (network(bumped) - network(x))[0, 0].nonzero(as_tuple=True)
    assert rows.min() == columns.min() == 8 - (depth + 1)
    assert rows.max() == columns.max() == 8 + (depth + 1)


def test_single_hidden_layer_is_its_formula():
    """N(x) = V ∗ ELU(U ∗ x + b) with zeros beyond the border, pixel by pixel."""
    network, x = DnCNN(1, 2, 1).double(), draw(1, 1, 4, 5)
    hidden = torch.stack([_correlate(x[0, 0], u[0]) + b for u, b in zip(*network.hidden[0].parameters(), strict=True)])
    hidden = torch.where(hidden > 0, hidden, hidden.exp() - 1)
    expected = sum(_correlate(h, v) for h, v in zip(hidden, network.output.weight[0], strict=True))
    torch.testing.assert_close(network(x)[0, 0], expected)


def _correlate(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    y = torch.zeros_like(x)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            for a in range(3):
                for b in range(3):
                    if 0 <= i + a - 1 < x.shape[0] and 0 <= j + b - 1 < x.shape[1]:
                        y[i, j] = y[i, j] + kernel[a, b] * x[i + a - 1, j + b - 1]
    return y


def test_noise_map_is_a_constant_channel_for_each_sample():
    network, x = DnCNN(1, 4, 2, noise_map=True).double(), draw(2, 1, 6, 6)
    sigma = torch.tensor([0.1, 0.5], dtype=torch.float64)
    together = network(x, sigma)
    for i in range(2):
        torch.testing.assert_close(network(x[i : i + 1], sigma[i])[0], together[i])
    assert (network(x, sigma.flip(0)) - together).abs().min() > 0
    without = DnCNN(1, 4, 2).double()
    assert torch.equal(without(x, sigma), without(x))


def test_training_mode_changes_nothing():
    network, x = DnCNN(1, 4, 2).double(), draw(2, 1, 6, 6)
    assert torch.equal(network.train()(x), network.eval()(x)) and not list(network.buffers())


def test_bad_arguments_are_refused_in_words():
    with pytest.raises(ValueError, match=r"DnCNN: expected positive sizes, got channels=1, features=0, depth=12"):
        DnCNN(features=0)
    with pytest.raises(ValueError, match=r"DnCNN: expected a noise level for its noise map, got None; set `sigma`"):
        DnCNN(1, 4, 2, noise_map=True)(torch.zeros(1, 1, 4, 4))
