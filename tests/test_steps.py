"""The order of an epoch, which replaces a sort where there are many examples."""

import jax
import numpy as np
import pytest

from jaxnn.steps import shuffled

shuffle = jax.jit(shuffled, static_argnums=1)


@pytest.mark.parametrize("n", [1, 2, 1024, 1025, 1681, 1682, 2000, 2003, 60_000])
def test_shuffled_is_a_permutation(n):
    """Squares, a square and one more, a prime: the tables' last cells are the ones to go wrong."""
    order = np.asarray(shuffle(jax.random.key(n), n))
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    assert n < 3 or (order != np.asarray(shuffle(jax.random.key(n + 1), n))).any()


def test_shuffled_is_as_random_as_sorting():
    """Places, pairs of places, differences of neighbours and fixed points, over 4,000 orders of 2,000 numbers.

    Each χ² has about its degrees of freedom as mean, and √(2·df) as standard deviation; six of those are allowed.
    """
    n, orders, bins = 2000, 4000, 20
    columns = 45  # ⌈√n⌉: numbers this far apart share a column of the network
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: shuffled(key, n)))(jax.random.split(jax.random.key(5), orders)))

    def chi_squared(counts):
        expected = counts.mean()
        return ((counts - expected) ** 2 / expected).sum() - (counts.size - 1), np.sqrt(2 * (counts.size - 1))

    place = drawn * bins // n
    for i, j in [(0, 1), (0, columns), (17, 1999), (columns - 1, columns)]:
        excess, deviation = chi_squared(np.histogram2d(place[:, i], place[:, j], bins=bins)[0])
        assert abs(excess) < 6 * deviation, (i, j)
    for apart in (1, columns):
        differences = (drawn[:, apart:] - drawn[:, :-apart]) % n
        excess, deviation = chi_squared(np.bincount(differences.ravel(), minlength=n)[1:])
        assert abs(excess) < 6 * deviation, apart
    assert abs((drawn == np.arange(n)).sum(1).mean() - 1) < 6 / np.sqrt(orders)  # fixed points: mean 1, variance 1
