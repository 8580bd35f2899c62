"""The verdict as a function of measurements: each is made by hand here, and no program runs."""

import numpy as np
import pytest

from jaxnn.gradcheck.arrays import ROUNDOFF
from jaxnn.gradcheck.differences import Slope
from jaxnn.gradcheck.evidence import Along, Evidence, Sides
from jaxnn.gradcheck.judge import ILL_CONDITIONED, ONLY_HERE, judge
from jaxnn.gradcheck.measuring import Measured
from jaxnn.gradcheck.mixtures import Mixture
from jaxnn.gradcheck.pieces import Mixed
from jaxnn.gradcheck.programs import Problem
from jaxnn.gradcheck.replay import Obstacle

U = 2.0**-24
G = np.array([1.0, -2.0, 3.0])
OFF = np.array([1.0, -2.0, 3.5])
NAN = np.array([1.0, -2.0, np.nan])
LAST = (2,)


class Given(Evidence):
    """Measurements on demand that are given; any other must not be asked for."""

    def __init__(self, **answers):
        self.answers = answers

    def narrow(self):
        return self.answers["narrow"]

    def rounding(self):
        return self.answers["rounding"]

    def obstacles(self):
        return self.answers.get("obstacles", [])

    def slope(self, element, *, perturbed=False):
        return self.answers["slope"]

    def along(self, elements=None, *, perturbed=False):
        return self.answers["along"]

    def directions(self, *first):
        return iter(self.answers["directions"])

    def sides(self, element):
        return self.answers["sides"]

    def mixture(self, hand, v):
        return self.answers["mixture"]


def called(*_):
    raise AssertionError("a verdict runs no program")


def measured(hand=G, auto=G, problem=None, nearby=True, u=U, evidence=None, **changes):
    """Measurements in float32 without noise, of a rule that gives `hand` where jax.grad gives `auto`.

    nearby: whether the two differ a millionth beside the point as well.
    """
    zeros, exact = np.zeros(np.shape(auto)), np.nan_to_num(auto)
    apart = np.abs(np.nan_to_num(hand) - exact) if nearby else zeros
    of = Problem("here", "gradient", ("x",), called, called, [], None, [], **(problem or {}))
    m = Measured(
        of, "x", False, hand, auto, hand, auto, hand, auto, zeros, zeros, u, u, apart, zeros, np.abs(exact),
        Given(**(evidence or {})),
    )  # fmt: skip
    return m._replace(**changes)


def slope(value, error=1e-12, left=None, right=None):
    return Slope(value, error, value if left is None else left, value if right is None else right, error)


def sides(low, high, alone=True):
    return Sides(slope((low + high) / 2, left=low, right=high), low, high, 1e-9, alone)


def mixed(short=0.0, outside=None, gave_up=False):
    low, high, zeros = np.full(3, -4.0), np.full(3, 3.25), np.zeros(3)
    return Mixed(Mixture(short, low, high, zeros, zeros + 1), outside, gave_up)


def here(hand=OFF, auto=G, **evidence):
    """The rule and jax.grad differ at this point alone."""
    return measured(hand, auto, nearby=False, evidence=evidence)


SQUARE = np.array([[1.0, 2.0], [3.0, 5.0]])
BEND, BOUND = slope(0.5, left=0.0, right=1.0), np.full(3, 1e-9)
TINY = np.array([1e-12, -2e-12, 3e-12])
CAST = Obstacle("a cast", "f.py:1", U)
ALWAYS = {"always_differences": True}
NOISY = {"sigma": np.full(3, 1e4)}

RIGHT = {
    "equal": (measured(), ""),
    "no elements": (measured(np.zeros(0), np.zeros(0)), "no elements"),
    "within the noise": (measured(G * (1 + 1e-13)), ""),
    "within forward_error": (measured(G * (1 + 1e-6), problem={"forward_error": 1e-6}), "forward_error=1e-06"),
    "float64, within float32's noise": (
        measured(G + 1e-12, u=ROUNDOFF, evidence={"narrow": np.full(3, 1e-2)}), ""),
    "0 to rounding": (measured(TINY, -TINY, evidence={"slope": slope(0.0, 1.0), "rounding": BOUND}), "0 to rounding"),
    "a sum that cancels": (
        measured(G + 1e-6, evidence={"slope": slope(3.0, 1.0), "rounding": np.full(3, 1e-5)}), "rounding of the terms"),
    "kinks that cancel": (here(sides=sides(3.5, 3.5)), "jax.grad's convention contradicts the function"),
    "jax.grad is nan, smooth": (
        here(auto=NAN, slope=slope(3.5), sides=sides(3.5, 3.5)), "jax.grad is not finite here"),
    "differences agree too": (
        measured(problem=ALWAYS, evidence={"slope": slope(3.0), "along": Along(np.ones(3), slope(2.0))}), ""),
    "a noisy gradient, equal": (measured(evidence={"rounding": BOUND}, **NOISY), "rounding of the terms"),
}  # fmt: skip
WRONG = {
    "one element": (measured(OFF, evidence={"slope": slope(3.0)}), "1 of 3 elements"),
    "a factor": (measured(2 * G, evidence={"slope": slope(3.0)}), "2 times jax.grad's, everywhere"),
    "zeros": (measured(0 * G, evidence={"slope": slope(3.0)}), "all zeros"),
    "transposed": (measured(SQUARE.T, SQUARE, evidence={"slope": slope(2.5)}), "the transpose"),
    "no kink": (here(sides=sides(3.0, 3.0)), "no kink: its slope is 3"),
    "outside the slopes": (here(sides=sides(3.0, 3.25), mixture=mixed(outside=LAST),
                                directions=[Along(np.array([0.0, 0.0, 1.0]), slope(3.1, left=3.0, right=3.25))]),
                           "not between the slopes nearby"),
    "no mixture": (here(sides=sides(3.0, 4.0, alone=False), mixture=mixed(short=1.0),
                        directions=[Along(np.ones(3), slope(2.0))]), "no convex combination"),
    "another reference, here alone": (
        measured(OFF, nearby=False, problem={"auto": called}), ONLY_HERE),
    "jax.grad is nan elsewhere": (measured(OFF, NAN[::-1].copy()), "off where jax.grad is finite"),
    "overflow": (measured(hand=NAN, hand64=G, replayed=G), "nan in the given precision"),
    "in the given precision alone": (measured(replayed=OFF), "right in float64 but wrong in the given precision"),
    "jax.grad repeated at a kink": (
        measured(problem=ALWAYS, jump=np.array([0.0, 0.0, 1.0]), evidence={"sides": sides(3.5, 3.5)}), "it repeats"),
    "0 expected": (measured(np.full(3, 1e-3), TINY, evidence={"rounding": BOUND, "slope": slope(0.0)}, **NOISY),
                   "finite differences are 0 to rounding"),
}  # fmt: skip
KINK = {
    "between the slopes": (here(sides=sides(3.0, 4.0), mixture=mixed()), "the slope jumps here from 3 to 4"),
    "several kinks": (here(sides=sides(3.5, 3.5, alone=False), mixture=mixed()), "several kinks meet here"),
    "a direction for each piece": (
        here(sides=sides(3.0, 4.0), mixture=mixed(short=1.0),
             directions=[Along(np.ones(3), slope(2.5, left=2.0, right=3.0))]), "the slope jumps"),
    "a surrogate": (
        measured(OFF, nearby=False, problem={"surrogate": True}, evidence={"mixture": mixed()}), "a kink:"),
    "jax.grad is nan": (
        here(auto=NAN, slope=slope(3.5, left=3.0, right=4.0), sides=sides(3.0, 4.0), mixture=mixed()), "jumps"),
}  # fmt: skip
CANNOT_TELL = {
    "differences agree with the rule": (measured(OFF, evidence={"slope": slope(3.5)}), "finite differences agree"),
    "a cast to float32": (
        measured(G * (1 + 1e-7), evidence={"slope": slope(3.0), "rounding": BOUND, "obstacles": [CAST]}),
        "a cast prevents a comparison in full float64"),
    "too many branches": (
        here(sides=sides(3.0, 4.0, alone=False), mixture=mixed(short=1.0, gave_up=True),
             directions=[Along(np.ones(3), slope(2.0))]), "more branches"),
    "jax.grad is nan": (measured(NAN, NAN), "jax.grad is nan at 1 of 3 elements, first at [2]"),
    "ill-conditioned": (measured(G + 1e-6, evidence={"rounding": np.full(3, 0.1)}, **NOISY), ILL_CONDITIONED),
    "ill-conditioned in the given precision": (
        measured(replayed=G * (1 + 100 * U), sigma=np.full(3, 1e-4)), "ill-conditioned in that precision"),
    "less than differences resolve": (
        measured(np.full(3, 1e-6), TINY, evidence={"slope": slope(0.0, 1.0), "rounding": BOUND}),
        "less than differences resolve"),
    "both contradict the function": (
        measured(problem=ALWAYS, evidence={"slope": slope(4.0), "along": Along(np.ones(3), slope(2.0))}),
        "contradict the function: here its slope is 4, and theirs 3"),
    "both contradict it along a direction": (
        measured(problem=ALWAYS, evidence={"slope": slope(3.0), "along": Along(np.ones(3), slope(5.0))}),
        "along a direction its slope is 5, and theirs 2"),
}  # fmt: skip
CASES = {"right": RIGHT, "wrong": WRONG, "kink": KINK, "cannot tell": CANNOT_TELL}


@pytest.mark.parametrize(("verdict", "name"), [(verdict, name) for verdict, cases in CASES.items() for name in cases])
def test_verdict(verdict, name):
    m, reason = CASES[verdict][name]
    row = judge(m)
    assert row.verdict == verdict, row
    assert reason in row.why, row
    assert (row.place, row.kind, row.leaf) == ("here", "gradient", "x")


def test_the_worst_element_and_its_errors_in_units_in_the_last_place():
    h = (G * (1 + np.array([0, 0, 4 * U]))).astype(np.float32)
    row = judge(measured(hand=h.astype(np.float64), hand64=G, replayed=G))
    assert (row.element, row.hand, row.autodiff) == (LAST, 3.0, 3.0)
    assert row.ulps == pytest.approx(3.0, abs=1.0)
    assert row.autodiff_ulps == 0
