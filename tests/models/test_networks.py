"""The networks that regularizers are built from: published sizes, formulas, pullbacks and what they cost."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from elder.models.networks import DnCNN, DRUNet, Network
from elder.models.regularizers import Regularizer, Residual
from tests.properties import concrete_subclasses
from tests.solvers.problems import draw

NETWORKS: dict[str, Callable[..., Network]] = {
    "dncnn": lambda channels=1, noise_map=False: DnCNN(channels, 6, 2, noise_map),
    "drunet": lambda channels=1, noise_map=False: DRUNet(channels, (4, 5, 6), 2, noise_map),
}
SIGMA = torch.tensor([0.1, 0.5], dtype=torch.float64)
every_network = pytest.mark.parametrize("name", NETWORKS)


def instance(name: str, channels: int = 1, noise_map: bool = False) -> Network:
    torch.manual_seed(1)
    return NETWORKS[name](channels, noise_map).double()


def test_every_network_is_tested():
    assert concrete_subclasses(Network) == {type(network()) for network in NETWORKS.values()}


# Pullbacks


@every_network
@pytest.mark.parametrize("noise_map", [False, True])
@pytest.mark.parametrize("shape", [(2, 1, 8, 12), (2, 2, 7, 9)], ids=str)
def test_pullback_is_the_transposed_jacobian(name, noise_map, shape):
    network, x, v = instance(name, shape[1], noise_map), draw(*shape).requires_grad_(), draw(*shape, seed=1)
    y, pullback = network.evaluate(x, SIGMA)
    assert torch.equal(y, network(x, SIGMA)) and y.shape == x.shape
    expected = torch.autograd.grad(y, x, v)[0]
    torch.testing.assert_close(pullback(v), expected, rtol=1e-12, atol=1e-14)
    assert y.is_contiguous() and pullback(v).is_contiguous()


@every_network
@pytest.mark.parametrize("noise_map", [False, True])
def test_skip_adds_the_image(name, noise_map):
    network, x, v = instance(name, 2, noise_map), draw(2, 2, 7, 9), draw(2, 2, 7, 9, seed=1)
    (plain, pull), network.skip = network.evaluate(x, SIGMA), True
    added, pull_added = network.evaluate(x, SIGMA)
    torch.testing.assert_close(added, x + plain, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(pull_added(v), v + pull(v), rtol=1e-14, atol=1e-14)
    for cls in (DnCNN, DRUNet):
        plain, skipping = cls(), cls(skip=True)
        assert skipping.skip and not plain.skip and skipping.state_dict().keys() == plain.state_dict().keys()


@every_network
def test_pullback_can_be_differentiated_twice_in_all_that_it_depends_on(name):
    """Third derivatives of R are more than anything here takes; they are right all the same."""
    network, sigma = instance(name, noise_map=True), SIGMA[:1].clone().requires_grad_()
    x, v = draw(1, 1, 3, 5).requires_grad_(), draw(1, 1, 3, 5, seed=1).requires_grad_()
    theta = next(network.parameters())

    def pull(x, v, sigma, theta):
        return network.evaluate(x, sigma)[1](v)

    assert torch.autograd.gradcheck(pull, (x, v, sigma, theta))
    assert torch.autograd.gradgradcheck(pull, (x, v, sigma, theta))


def product_with_hessian(R: Regularizer, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    leaf = x.clone().requires_grad_()
    gradient = R.grad(leaf)
    return lambda: torch.autograd.grad(gradient, leaf, torch.ones_like(x), retain_graph=True)[0]


def flops(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@every_network
@pytest.mark.parametrize("learning", [False, True])
def test_gradient_and_hessian_product_cost_two_passes_of_the_network_each(name, learning):
    network, x = instance(name).requires_grad_(learning), draw(1, 1, 16, 16)
    R = Residual(network)
    once = flops(lambda: network(x))
    assert flops(lambda: R.value_and_grad(x)) == 2 * once
    assert flops(product_with_hessian(R, x)) == 2 * once


@every_network
def test_tape_of_the_gradient_holds_inputs_of_convolutions_and_two_factors_for_each_slope(name):
    """Of an activation y, v and v times its slope; y and the last are inputs of convolutions, too."""
    network, x, sizes = instance(name), draw(2, 1, 16, 16).requires_grad_(), {}

    def record(saved: torch.Tensor) -> torch.Tensor:
        if saved.shape[0] == 2 and saved.shape[1] > 1:  # neither weights nor images
            assert saved.is_contiguous(memory_format=torch.channels_last)
            sizes[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(record, lambda saved: saved):
        gradient = Residual(network).grad(x)
    fine, middle, coarse = 4, 5 / 4, 6 / 16  # features of the DRUNet, times pixels of its scales
    expected = {
        "dncnn": 2 * 3 * 6,  # layers, maps, features
        "drunet": 5 * (4 * fine + 4 * middle + 2 * coarse)  # blocks: y, v, v times slope, and what enters, up and down
        + 2 * (fine + middle)  # changes of scale, up and down
        + 2 * (middle + coarse)
        + 2 * fine,  # tail, and head down
    }
    assert gradient.requires_grad and sum(sizes.values()) == expected[name] * x.numel() * x.element_size()


@every_network
@pytest.mark.parametrize("noise_map", [False, True])
def test_lower_precision_is_that_of_the_network_alone(name, noise_map):
    """Under autocast maps are kept in half the bytes, while R, ∇R and its derivatives come in full precision."""
    R, x = Residual(instance(name, noise_map=noise_map)).float(), draw(2, 1, 16, 16).float()
    leaf, sigma = x.clone().requires_grad_(), SIGMA.float()
    value, gradient = R.value_and_grad(x, sigma)
    parameters = list(R.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            R.value_and_grad(x, sigma)  # whose casts of the weights must not be taken for differentiable ones
        low_value, low_gradient = R.value_and_grad(leaf, sigma)
        assert R.network.evaluate(x, sigma)[1](x).dtype == torch.bfloat16
    found = torch.autograd.grad(low_gradient, [leaf, *parameters], torch.ones_like(x))
    assert {low_value.dtype, low_gradient.dtype, *(g.dtype for g in found)} == {torch.float32}
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(R.grad(leaf, sigma), [leaf, *parameters], torch.ones_like(x))
    for low, full in zip((low_value, low_gradient, *found), (value, gradient, *expected), strict=True):
        assert 0 < (low - full).norm() < 0.02 * full.norm()


@every_network
@pytest.mark.parametrize("noise_map", [False, True])
def test_noise_map_is_a_constant_channel_for_each_sample(name, noise_map):
    network, x = instance(name, noise_map=noise_map), draw(2, 1, 6, 6)
    together = network(x, SIGMA)
    for i in range(2):
        torch.testing.assert_close(network(x[i : i + 1], SIGMA[i])[0], together[i])
    changed = network(x, SIGMA.flip(0)) - together
    assert changed.abs().min() > 0 if noise_map else not changed.any()


@every_network
def test_training_mode_changes_nothing(name):
    network, x = instance(name), draw(2, 1, 6, 6)
    before = x.clone()
    assert torch.equal(network.train()(x), network.eval()(x)) and not list(network.buffers())
    assert torch.equal(x, before)


# DnCNN


@pytest.mark.parametrize(("channels", "expected"), [(1, 408_000), (3, 410_304)])
def test_size_is_the_published_one(channels, expected):
    """Released ELDER networks with a noise map: 12 biased 3×3 layers of width 64 and a bias-free output."""
    with torch.device("meta"):
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


# DRUNet


@pytest.mark.parametrize(
    ("channels", "blocks", "expected"), [(1, 2, 17_008_320), (3, 2, 17_010_624), (3, 4, 32_640_960)]
)
def test_size_of_drunet_is_the_published_one(channels, blocks, expected):
    """Of `blocks` at 3 scales on either side and at the last, of 2×2 changes of scale, of the first and last layer:
    17.0 million (Hurault et al., 2022), and 32.6 (Zhang et al., 2021)."""
    inside = 9 * 2 * blocks * (2 * (64**2 + 128**2 + 256**2) + 512**2)
    steps = 2 * 4 * (64 * 128 + 128 * 256 + 256 * 512)
    with torch.device("meta"):
        network = DRUNet(channels, (64, 128, 256, 512), blocks, noise_map=True)
    found = sum(p.numel() for p in network.parameters())
    assert found == inside + steps + 9 * 64 * (2 * channels + 1) == expected


def test_a_functional_of_published_size_takes_a_step():
    """All 17 million weights, once: the loss of a denoiser decreases along its gradient, which passes through ∇R."""
    torch.manual_seed(0)
    R = Residual(DRUNet(1, (64, 128, 256, 512), 2, noise_map=True))
    x, sigma = torch.rand(1, 1, 16, 16), torch.full((1,), 0.1)
    y = x + 0.1 * torch.randn(x.shape)
    before = (y - R.grad(y, sigma) - x).square().mean()
    before.backward()
    gradients = [p.grad for p in R.parameters()]
    step = 0.1 * before.detach() / sum(g.square().sum() for g in gradients)
    with torch.no_grad():
        for p, g in zip(R.parameters(), gradients, strict=True):
            assert g.abs().max() > 0
            p -= step * g
    assert (y - R.grad(y, sigma) - x).square().mean() < before


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (3, 1)], ids=str)
def test_drunet_is_its_formula(size):
    """The order of the paper: three maps on the way down, each added to what comes back up at its scale."""
    network, x = instance("drunet"), draw(2, 1, *size)
    elu, conv = torch.nn.functional.elu, torch.nn.functional.conv2d

    def blocks(u, weights):
        for first, second in weights:
            u = u + conv(elu(conv(u, first.weight, padding=1)), second.weight, padding=1)
        return u

    rows, columns = (torch.arange(-(-n // 4) * 4).clamp_max(n - 1) for n in size)
    x1 = conv(x[:, :, rows][:, :, :, columns], network.head.weight, padding=1)
    x2 = conv(blocks(x1, network.descending[0]), network.down[0].weight, stride=2)
    x3 = conv(blocks(x2, network.descending[1]), network.down[1].weight, stride=2)
    u = blocks(x3, network.bottom) + x3
    u = blocks(torch.nn.functional.conv_transpose2d(u, network.up[1].weight, stride=2), network.ascending[1]) + x2
    u = blocks(torch.nn.functional.conv_transpose2d(u, network.up[0].weight, stride=2), network.ascending[0]) + x1
    expected = conv(u, network.tail.weight, padding=1)[:, :, : size[0], : size[1]]
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-14)


# ReLU, for implicit priors


@pytest.mark.parametrize("shape", [(2, 1, 8, 12), (2, 2, 7, 9)], ids=str)
def test_network_of_relus_is_piecewise_linear_with_that_pullback(shape):
    """Without biases it is homogeneous, N(cx) = cN(x) for c > 0, and linear around almost every x: N(x) = J_N(x)x."""
    torch.manual_seed(1)
    network = DRUNet(shape[1], (4, 5, 6), 1, activation="relu").double()
    x, v = draw(*shape).requires_grad_(), draw(*shape, seed=1)
    y, pullback = network.evaluate(x)
    torch.testing.assert_close(network(3 * x), 3 * y)
    torch.testing.assert_close((pullback(v) * x).sum(), (v * y).sum())
    torch.testing.assert_close(pullback(v), torch.autograd.grad(y, x, v)[0], rtol=1e-12, atol=1e-14)
    assert not network.smooth and DRUNet(1, (4,), 1).smooth


def test_bad_arguments_are_refused_in_words():
    with pytest.raises(ValueError, match=r"activation: expected elu or relu, got 'tanh'"):
        DnCNN(1, 2, 1, activation="tanh")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"DnCNN: expected positive sizes, got channels=1, features=0, depth=12"):
        DnCNN(features=0)
    with pytest.raises(ValueError, match=r"DnCNN: expected a noise level for its noise map, got None; set `sigma`"):
        DnCNN(1, 4, 2, noise_map=True)(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"DRUNet: expected a noise level for its noise map, got None; set `sigma`"):
        DRUNet(1, (4,), 1, noise_map=True)(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"DRUNet: expected positive sizes, got channels=1, widths=\(\), blocks=2"):
        DRUNet(widths=())
