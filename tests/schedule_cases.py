"""Every schedule beside its formula."""

import math

from jaxnn import schedules

CASES = {
    "constant": (schedules.constant(0.3), lambda t: 0.3),
    "step_decay": (schedules.step_decay(0.1, factor=0.5, every=7), lambda t: 0.1 * 0.5 ** (t // 7)),
    "piecewise": (
        schedules.piecewise([0.3, 0.1, 0.2], boundaries=[7, 20]),
        lambda t: 0.3 if t < 7 else 0.1 if t < 20 else 0.2,
    ),
    "exponential": (schedules.exponential(0.1, factor=0.5, every=7), lambda t: 0.1 * 0.5 ** (t / 7)),
    "inverse_time": (schedules.inverse_time(0.1, rate=0.5, every=7), lambda t: 0.1 / (1 + 0.5 * t / 7)),
    "polynomial": (
        schedules.polynomial(0.3, final=0.1, steps=20, power=2),
        lambda t: 0.1 + 0.2 * (1 - min(t, 20) / 20) ** 2,
    ),
    "cosine": (
        schedules.cosine(0.3, steps=20, final=0.1),
        lambda t: 0.1 + 0.2 * (1 + math.cos(math.pi * min(t, 20) / 20)) / 2,
    ),
    "warmup": (
        schedules.warmup(5, schedules.inverse_time(0.2, rate=1.0), initial=0.1),
        lambda t: 0.1 + 0.1 * t / 5 if t < 5 else 0.2 / (1 + (t - 5)),
    ),
    "joined": (
        schedules.joined([schedules.constant(0.3), schedules.step_decay(0.1, factor=0.5, every=7)], [10]),
        lambda t: 0.3 if t < 10 else 0.1 * 0.5 ** ((t - 10) // 7),
    ),
    "scaled": (schedules.scaled(schedules.step_decay(0.1, factor=0.5, every=7), 0.3), lambda t: 0.03 * 0.5 ** (t // 7)),
}
