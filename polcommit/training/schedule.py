"""Learning rate schedules as pure functions of the step, equal bit for bit everywhere.

`math.cos` is the C library's and may differ in the last bit between machines; a schedule is committed to by its
bits. Here are additions, multiplications and divisions only.
"""

from __future__ import annotations

# Taylor coefficients of the cosine in z**2: (-1)^n / (2n)!; beyond n = 11 a term is below 1e-18 for z <= pi / 2
_COSINE = (
    1.0, -1 / 2, 1 / 24, -1 / 720, 1 / 40320, -1 / 3628800, 1 / 479001600, -1 / 87178291200, 1 / 20922789888000,
    -1 / 6402373705728000, 1 / 2432902008176640000, -1 / 1124000727777607680000,
)  # fmt: skip
_HALF_PI = 1.5707963267948966


def half_cosine(x: float) -> float:
    """(1 + cos(pi * x)) / 2 for 0 <= x <= 1: from 1 down to 0. x beyond that counts as the nearer end."""
    z = _HALF_PI * min(max(x, 0.0), 1.0)
    square = z * z
    cosine = 0.0
    for coefficient in reversed(_COSINE):
        cosine = cosine * square + coefficient
    return cosine * cosine if x < 1.0 else 0.0


def warm_up_cosine(t: int, steps: int, warm_up: int, least: float = 0.0) -> float:
    """Share of the peak rate at step t, from 1: up in a line over `warm_up` steps, then a half cosine to `least`."""
    if t <= warm_up:
        return t / warm_up
    return least + (1.0 - least) * half_cosine((t - warm_up) / max(steps - warm_up, 1))
