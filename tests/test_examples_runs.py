"""The examples that train by a step of their own: a GAN, and a policy gradient; the δs by hand beside jax.grad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples_loader import load_example
from test_training import assert_close

import jaxnn

pytest.importorskip("matplotlib", reason="these examples draw a picture")
pytestmark = pytest.mark.long
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PLAIN = jaxnn.sgd(1.0)  # the change of the parameters is −∂C/∂θ


def changes(new, old):
    return jax.tree.map(lambda new, old: old - new, new.params, old.params)


def test_a_gan_covers_all_places(tmp_path, capsys):
    example = load_example("gan")
    history = example.main(out=tmp_path)
    assert (np.asarray(history["validation_covered"][:, -1]) == example.PLACES).all()
    assert (np.asarray(history["validation_near"][:, -1]) > 0.7).all()
    assert (np.asarray(history["right"][:, -1]) < 0.75).all()  # D is not sure any more
    assert capsys.readouterr().out.count("8 of 8 places") == 4
    assert (tmp_path / "gan.png").read_bytes().startswith(PNG_MAGIC)


def test_the_gradient_of_a_generator_is_that_of_its_cost():
    """δ at D's input, handed to G, is ∂C/∂G(z): the same as jax.grad of the cost that is never written down."""
    example = load_example("gan")
    example.OPTIMIZERS = {"G": PLAIN, "D": PLAIN}
    state, real = example.start(jax.random.key(3)), example.points(jax.random.key(4), 16)
    state = state._replace(opt_state={name: PLAIN.init(state.params[name]) for name in example.NETS})
    new, info = jax.jit(example.step)(state, real)
    z = jax.random.normal(jax.random.fold_in(state.key, state.step), (16, example.Z))

    def answer(name, params, x):
        return example.NETS[name].forward(params, (), x)[0][:, 0]

    def of_d(params):
        fake = example.NETS["G"].forward(state.params["G"], (), z)[0]
        right = jax.nn.log_sigmoid(answer("D", params, real)) + jax.nn.log_sigmoid(-answer("D", params, fake))
        return -right.mean() / 2

    def of_g(params):
        return -jax.nn.log_sigmoid(answer("D", new.params["D"], example.NETS["G"].forward(params, (), z)[0])).mean()

    for name, cost, figure in (("D", of_d, "loss"), ("G", of_g, "loss of G")):
        value, grads = jax.jit(jax.value_and_grad(cost))(state.params[name])
        assert float(info[figure]) == pytest.approx(float(value), rel=1e-5)
        assert_close(changes(new, state)[name], grads, 1e-5)


def test_a_policy_comes_near_the_best(tmp_path, capsys):
    example = load_example("policy_gradient")
    returns, best = example.main(out=tmp_path)
    assert returns.shape == (4, 30)
    assert (returns[:, 0] < best - 20).all()
    assert (abs(returns[:, -5:].mean(1) - best) < 0.5).all()
    assert capsys.readouterr().out.count(f"at best {best:.1f}") == 4
    assert (tmp_path / "policy_gradient.png").read_bytes().startswith(PNG_MAGIC)


def test_the_best_return_is_that_of_the_shortest_way_where_nothing_goes_astray():
    """By breadth-first search from the exit, where the example repeats Bellman's equation."""
    example = load_example("policy_gradient")
    example.ASTRAY = 0.0
    far, reached = {tuple(example.EXIT): 0}, [tuple(example.EXIT)]
    for place in reached:
        for move in example.MOVES:
            new = tuple(np.add(place, move))
            inside = all(0 <= i < n for i, n in zip(new, example.ROOM.shape, strict=True))
            if inside and example.FREE[new] and new not in far:
                far[new] = far[place] + 1
                reached.append(new)
    assert example.best_return() == pytest.approx(-np.mean([far[tuple(place)] for place in example.PLACES]), rel=1e-12)


def test_the_gradient_of_a_policy_is_that_of_its_log_likelihood():
    """(G − b) (π − e_a) is the δ of −(G − b) log π(a), summed over the moves of a walk."""
    example = load_example("policy_gradient")
    example.OPTIMIZER = PLAIN
    keys = jax.random.split(jax.random.key(1), 2)
    nets = zip(keys, example.NETS.items(), strict=True)
    params = {name: net.init(key, (sum(example.ROOM.shape),))[0] for key, (name, net) in nets}
    state = jaxnn.TrainState(params, (), PLAIN.init(params), jnp.int32(0), keys[0], jnp.int32(0))
    starts = jnp.asarray(example.PLACES[:9])
    new, info = jax.jit(example.step)(state, starts)
    places, actions, going = example.walk(params["policy"], jax.random.fold_in(state.key, 0), starts)
    followed = -np.cumsum(np.asarray(going)[::-1], axis=0)[::-1]
    assert float(info["return"]) == pytest.approx(followed[0].mean(), rel=1e-6)

    def expected(b):
        return example.NETS["expected"].forward(b, (), example.seen(places))[0][..., 0]

    def unlikely(policy):
        logits = example.NETS["policy"].forward(policy, (), example.seen(places))[0]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), actions[..., None], -1)[..., 0]
        return -(going * (followed - expected(params["expected"])) * chosen).sum() / len(starts)

    def wrong(b):
        return (going * jnp.square(expected(b) - followed)).sum() / 2 / going.sum()

    found = changes(new, state)
    assert_close(found["policy"], jax.jit(jax.grad(unlikely))(params["policy"]), 1e-5)
    assert_close(found["expected"], jax.jit(jax.grad(wrong))(params["expected"]), 1e-5)


# ---------------------------------------------------------------- sweeps and files


def test_a_sweep_over_rates_and_penalties(tmp_path, capsys, monkeypatch):
    pytest.importorskip("sklearn", reason="holds the digits")
    example = load_example("sweep")
    monkeypatch.setattr(example, "SETTINGS", {"learning_rate": [1e-4, 1e-2, 1.0], "penalty": [0.0, 1e-1]})
    swept = example.main(seeds=2, epochs=6, out=tmp_path)
    best = swept.best()
    assert best.settings == {"learning_rate": 1e-2, "penalty": 0.0}
    assert best.best["validation_accuracy"] > 0.9
    assert "12 trainings" in capsys.readouterr().out
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def test_a_state_in_orbaxs_files(tmp_path):
    pytest.importorskip("orbax.checkpoint", reason="the example saves with it")
    assert load_example("orbax_checkpoint").main(tmp_path / "state")
