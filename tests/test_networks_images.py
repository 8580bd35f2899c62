"""Networks for images: what they are made of, both derivations of their gradients, and the example that trains one."""

import jax
import numpy as np
import pytest
from draws import drawn, normal
from examples_loader import load_example
from laws import FLOAT32, FLOAT64, close, evaluated

import jaxnn
from jaxnn import autodiff, backprop, losses, networks
from jaxnn.trees import named_leaves


@pytest.mark.parametrize(
    ("net", "shape"),
    [(networks.lenet(3, features=(2, 3), hidden=4), (16, 16, 2)), (networks.resnet(3, features=(2, 4)), (5, 6, 1))],
    ids=["lenet", "resnet"],
)
def test_both_derivations_agree(net, shape):
    with jax.enable_x64(True):
        params, state = drawn(net, shape, "float64")
        x, labels = normal(4, *shape, seed=1, dtype="float64"), np.array([0, 1, 2, 1], np.int32)
        by_hand, by_jax = (
            evaluated(derive(net, losses.softmax_cross_entropy))(params, state, x, labels)
            for derive in (backprop, autodiff)
        )
        close(by_hand.grads, by_jax.grads, FLOAT64, "gradients")
        close(by_hand.state, by_jax.state, FLOAT64, "state")


def test_layers_with_weights_are_counted_as_in_the_paper():
    for blocks in (1, 3):
        params, _ = jax.eval_shape(lambda b=blocks: networks.resnet(blocks=b).init(0, (32, 32, 3)))
        weights = [path for path in named_leaves(params) if path.endswith("/w") and "/skip/" not in path]
        assert len(weights) == 6 * blocks + 2


def test_the_first_layer_s_delta_is_not_computed():
    """Nobody reads it: compiled, the step has the three products that are needed and no more."""
    net = jaxnn.conv(4, (3, 3), padding="valid")
    params, state = drawn(net, (8, 8, 1))
    x = np.ones((2, 8, 8, 1), np.float32)

    def flops(read):
        def step(params, x):
            z, _, tape = net.forward(params, state, x)
            return read(net.backward(params, tape, z))

        return jax.jit(step).lower(params, x).compile().cost_analysis()["flops"]

    assert flops(lambda back: back[1]) < 0.75 * flops(lambda back: back)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="resnet: blocks must be at least 1"):
        networks.resnet(blocks=0)
    with pytest.raises(ValueError, match=r"layer 'conv_1' has a window of \(5, 5\)"):
        networks.lenet().init(0, (8, 8, 1))


def test_lenet_with_the_weights_of_pytorch():
    """Kernels, and the dense layer that reads flattened feature maps, as the docstring of `conv` converts them."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    nn = torch.nn
    convs, denses = (nn.Conv2d(1, 20, 5), nn.Conv2d(20, 40, 5)), (nn.Linear(640, 100), nn.Linear(100, 10))
    block = lambda conv: (conv, nn.ReLU(), nn.MaxPool2d(2))
    theirs = nn.Sequential(*block(convs[0]), *block(convs[1]), nn.Flatten(), denses[0], nn.ReLU(), denses[1])
    params = {}
    for i, layer in enumerate(convs):
        weight, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
        params[f"conv_{i}"] = {"w": np.moveaxis(weight, (0, 1), (-1, -2)), "b": bias}
    for i, layer in enumerate(denses):
        weight, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
        params[f"dense_{i}"] = {"w": weight.T, "b": bias}
    w = params["dense_0"]["w"]
    params["dense_0"]["w"] = np.moveaxis(w.reshape(40, 4, 4, -1), 0, -2).reshape(w.shape)
    x = np.random.default_rng(0).random((3, 28, 28, 1), dtype=np.float32)
    expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2))).detach().numpy()
    close(evaluated(networks.lenet().forward)(params, {}, x)[0], expected, FLOAT32, "PyTorch")


@pytest.mark.long
def test_the_example_learns_the_digits(tmp_path, capsys):
    for module in ("matplotlib", "sklearn"):
        pytest.importorskip(module, reason="an optional package that the example uses")
    accuracy = load_example("lenet").main(epochs=3, out=tmp_path)
    assert accuracy > 0.6  # 36 steps; chance is 0.1
    assert "parameters" in capsys.readouterr().out
    for picture in ("lenet_kernels", "lenet_features"):
        assert (tmp_path / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_summary_counts_all_of_a_convolution():
    """Its fast rule works in chunks, of which XLA would count one."""
    net = jaxnn.serial(jaxnn.conv(4, (3, 3), padding="valid"), jaxnn.conv(4, (3, 3), padding="valid"))
    first, second = 2 * 8 * 8 * 9 * 4, 2 * 6 * 6 * 36 * 4  # FLOPs of an example
    cost = jaxnn.summary(net, (10, 10, 1), batch_size=512).cost
    assert cost.forward / 512 == pytest.approx(first + second, rel=0.05)
    assert cost.step / 512 == pytest.approx(2 * first + 3 * second, rel=0.1)  # no δ for the first layer's input
