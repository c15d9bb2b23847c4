"""The law of loss against model size and data, fitted to a user's own runs: L(N, D) = E + A /
N^alpha + B / D^beta.

N is parameters, D is training tokens, L is nats per token. Form and objective are those of Hoffmann
et al., Training Compute-Optimal Large Language Models (2022), approach 3: the sum of Huber losses
(delta 1e-3) of log L, by L-BFGS. Their grid of starts is over all five numbers; here it is over the
two exponents only, since for given exponents E, A and B follow from a linear problem.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize, nnls
from scipy.stats import norm
from scipy.stats import t as student_t
from tqdm import tqdm

from hfscale.process import InputError

EXPONENTS = np.linspace(0.05, 1.5, 16)
STARTS = 8  # of the best points of the grid, each polished; the lowest end wins
TINY = 1e-12
FIVE = [
    0,
    1,
    2,
    3,
    -1,
]  # log E, log A, log B, alpha, beta of what is fitted: equal exponents are one number there


class Law(NamedTuple):
    """The five numbers of the law."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, n: np.ndarray | float, d: np.ndarray | float) -> np.ndarray | float:
        """Nats per token after `d` tokens with `n` parameters."""
        return self.E + self.A / np.power(n, self.alpha) + self.B / np.power(d, self.beta)

    def optimal(self, flops: np.ndarray | float) -> tuple[np.ndarray | float, np.ndarray | float]:
        """(N, D) of the lowest loss for a training budget of `flops` = 6 N D (Hoffmann et al.,
        equation 4).
        """
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        n = g * (np.asarray(flops) / 6) ** (self.beta / (self.alpha + self.beta))
        return n, np.asarray(flops) / 6 / n

    def split(self, flops: float) -> dict[str, float]:
        """N, D and loss of the optimum by name."""
        n, d = self.optimal(flops)
        return {"parameters": float(n), "tokens": float(d), "loss": float(self.loss(n, d))}


class Fit(NamedTuple):
    """A fitted law and what surrounds it."""

    law: Law
    draws: list[Law]  # refits to the fitted losses with noise of `noise_sd` anew
    noise_sd: (
        float  # of log L around the law, widened for the few runs that the parameters leave over
    )

    def record(self) -> dict[str, float | list]:
        """The five numbers, each with its 95 % interval beside it, and the warnings: a part of
        `law.json`.
        """
        return {
            **self._with_intervals(Law._asdict),
            "noise_sd": self.noise_sd,
            "warnings": self.warnings,
        }

    def split(self, flops: float) -> dict[str, float | list[float]]:
        """The compute-optimal N, D and loss for a budget of 6 N D FLOPs, each with its 95 %
        interval.
        """
        return {"flops": flops, **self._with_intervals(lambda law: law.split(flops))}

    def _with_intervals(
        self, numbers_of: Callable[[Law], dict[str, float]]
    ) -> dict[str, float | list[float]]:
        draws, found = [numbers_of(draw) for draw in self.draws], {}
        for name, value in numbers_of(self.law).items():
            found |= {name: value, f"{name}_ci95": self.interval([draw[name] for draw in draws])}
        return found

    def interval(self, values: Sequence[float], level: float = 0.95) -> list[float]:
        """Percentile interval of a value computed from each of `draws`."""
        return np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()

    def forecast(self, n: float, d: float) -> dict[str, float | list[float]]:
        """Loss to expect of one new run: the law's value, and a 90 % interval that holds the run's
        own noise too.
        """
        noise = np.random.default_rng(0).normal(0, self.noise_sd, len(self.draws))
        runs = [law.loss(n, d) * np.exp(e) for law, e in zip(self.draws, noise, strict=True)]
        return {"loss": float(self.law.loss(n, d)), "loss_ci90": self.interval(runs, 0.90)}

    @property
    def warnings(self) -> list[str]:
        """Why the grid may not determine the law."""
        found = []
        for name in ("alpha", "beta"):
            exponent = getattr(self.law, name)
            low, high = self.interval([getattr(draw, name) for draw in self.draws])
            if high > 2 * exponent or low < exponent / 2:
                found.append(
                    f"{name} is not determined: its 95 % interval is {low:.3g} to {high:.3g}; "
                    "widen the grid"
                )
        if self.law.E < 1e-3:
            found.append(
                "E came out as 0: these runs show no floor of the loss; forecasts far beyond them "
                "are guesses"
            )
        return found


def fit_law(
    n: Sequence[float],
    d: Sequence[float],
    loss: Sequence[float],
    *,
    equal_exponents: bool = False,
    delta: float = 1e-3,
    resamples: int = 500,
    seed: int = 0,
    progress: str = "",
) -> Fit:
    """Fit the law to runs of `n` parameters, `d` tokens and final `loss`; intervals by parametric
    bootstrap.

    `equal_exponents` sets alpha = beta, one parameter less, as in Gadre et al., Language models
    scale reliably with over-training (2024). A residual of log L beyond `delta` counts linearly; a
    large `delta` gives least squares. The bootstrap refits the fitted losses with normal noise of
    the residuals' size, widened to what Student's t asks for the degrees of freedom left.
    (Resampled residuals cover too little: an L1-like fit passes through as many points as it has
    parameters.) `progress` names a bar that shows how far the bootstrap is; none without a name.

    Raises:
        InputError: a value that is not a positive number, fewer runs than one more than the
            parameters, or fewer than three sizes or data amounts (two if `equal_exponents`): the
            law would not be determined.
    """
    n, d, loss = (np.asarray(values, dtype=np.float64) for values in (n, d, loss))
    if not all((np.isfinite(v) & (v > 0)).all() for v in (n, d, loss)):
        raise InputError(
            "scaling fit: a size, token count or loss is not a positive number; leave that run out"
        )
    check_determined(n, d, equal_exponents)
    parameters = _parameters(equal_exponents)
    x, y, w = np.log(n), np.log(d), np.log(loss)
    centre = x.mean(), y.mean()  # about it the problem is well conditioned
    x, y = x - centre[0], y - centre[1]
    best = _best_fit(x, y, w, _starts(x, y, w, equal_exponents), delta)
    law, free = _law(best, *centre), len(w) - parameters
    fitted = np.log(law.loss(n, d))
    noise_sd = float(
        np.sqrt(np.sum((w - fitted) ** 2) / free) * student_t.ppf(0.975, free) / norm.ppf(0.975)
    )
    noise = np.random.default_rng(seed).normal(0, noise_sd, (resamples, len(w)))
    refits = tqdm(noise, desc=progress, disable=not progress)
    return Fit(
        law,
        [_law(_best_fit(x, y, fitted + row, [best], delta), *centre) for row in refits],
        noise_sd,
    )


def _parameters(equal_exponents: bool) -> int:
    return 4 if equal_exponents else 5


def check_determined(
    n: Sequence[float], d: Sequence[float], equal_exponents: bool = False, place: str = ""
) -> None:
    """Raise InputError, beginning with `place`, unless runs of these sizes and data amounts can
    determine the law: one more run than it has parameters, and three sizes and amounts (two if
    `equal_exponents`).
    """
    parameters, place = _parameters(equal_exponents), place or "scaling fit"
    if len(n) <= parameters:
        raise InputError(
            f"{place}: {len(n)} runs cannot determine {parameters} parameters; give at least "
            f"{parameters + 1}"
        )
    least = parameters - 2
    for name, values in (("model sizes", n), ("data amounts", d)):
        if len(np.unique(values)) < least:
            raise InputError(
                f"{place}: {len(np.unique(values))} different {name}; the law needs at least "
                f"{least} to tell its floor from its slope: add cells to the grid"
            )


def _objective(
    free: np.ndarray, x: np.ndarray, y: np.ndarray, w: np.ndarray, delta: float
) -> tuple[float, np.ndarray]:
    """Summed Huber loss, scaled by 1 / delta^2 so that L-BFGS does not stop early, and its
    gradient.
    """
    e, a, b, alpha, beta = free[FIVE]
    terms = np.exp(
        np.minimum(np.stack([np.full_like(x, e), a - alpha * x, b - beta * y]), 50.0)
    )  # a wild step
    total = terms.sum(axis=0)
    error = (np.log(total) - w) / delta
    slope = np.clip(error, -1, 1)
    pull = terms * (slope / total / delta)
    exponents = [-(pull[1] * x).sum(), -(pull[2] * y).sum()]
    gradient = [*pull.sum(axis=1), *(exponents if len(free) == 5 else [sum(exponents)])]
    return float((slope * (error - slope / 2)).sum()), np.array(gradient)


def _starts(x: np.ndarray, y: np.ndarray, w: np.ndarray, equal_exponents: bool) -> list[np.ndarray]:
    """The best points of a grid over the exponents; E, A, B by non-negative least squares of
    relative errors.
    """
    found = []
    for exponents in itertools.product(EXPONENTS, repeat=1 if equal_exponents else 2):
        terms = [np.ones_like(x), np.exp(-exponents[0] * x), np.exp(-exponents[-1] * y)]
        scales, error = nnls(np.stack(terms, 1) / np.exp(w)[:, None], np.ones_like(w))
        found.append((error, np.array([*np.log(np.maximum(scales, TINY)), *exponents])))
    return [start for _, start in sorted(found, key=lambda item: item[0])[:STARTS]]


def _best_fit(
    x: np.ndarray, y: np.ndarray, w: np.ndarray, starts: list[np.ndarray], delta: float
) -> np.ndarray:
    """The lowest end over all starts."""
    bounds = [(np.log(TINY), None)] * 3 + [(1e-3, 3.0)] * (len(starts[0]) - 3)
    ends = [
        minimize(
            _objective,
            start,
            (x, y, w, delta),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": 3000, "maxcor": 30, "ftol": 1e-12, "gtol": 1e-8},
        )
        for start in starts
    ]
    return min(ends, key=lambda end: end.fun).x


def _law(free: np.ndarray, log_n: float, log_d: float) -> Law:
    """From what was fitted about the centre (log_n, log_d)."""
    e, a, b, alpha, beta = free[FIVE].tolist()
    return Law(math.exp(e), math.exp(a + alpha * log_n), math.exp(b + beta * log_d), alpha, beta)
