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
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from scipy.optimize import minimize, nnls
from scipy.stats import norm
from scipy.stats import t as student_t
from tqdm import tqdm

from hfscale.process import InputError

# The grid of starts over each exponent: published ones lie between 0.1 and 0.8.
EXPONENTS = np.linspace(0.05, 1.5, 16)
STARTS = 8  # of the best points of the grid, each polished; the lowest end wins
TINY = 1e-12  # what stands for a floor, or a term, of zero: its logarithm is fitted
# Where log E, log A, log B, alpha and beta stand in what is fitted: equal exponents are one number,
# which is both the fourth and the last.
FIVE = [0, 1, 2, 3, -1]
Numbers: TypeAlias = np.ndarray | float


class Law(NamedTuple):
    """The five numbers of the law."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, n: Numbers, d: Numbers) -> Numbers:
        """Nats per token after `d` tokens with `n` parameters."""
        return self.E + self.A / np.power(n, self.alpha) + self.B / np.power(d, self.beta)

    def optimal(self, flops: float) -> tuple[float, float]:
        """(N, D) of the lowest loss for a training budget of `flops` = 6 N D (Hoffmann et al.,
        equation 4).
        """
        exponents = self.alpha + self.beta
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / exponents)
        n = g * (flops / 6) ** (self.beta / exponents)
        return n, flops / 6 / n

    def split(self, flops: float) -> dict[str, float]:
        """N, D and loss of the optimum by name."""
        n, d = self.optimal(flops)
        return {"parameters": n, "tokens": d, "loss": float(self.loss(n, d))}


class Fit(NamedTuple):
    """A fitted law and what surrounds it."""

    law: Law
    draws: list[Law]  # refits to the fitted losses with noise of `noise_sd` anew
    # Of log L around the law, widened for the few runs that the parameters leave over.
    noise_sd: float

    def record(self) -> dict[str, Any]:
        """The five numbers, each with its 95 % interval beside it, and the warnings: a part of
        `law.json`.
        """
        return {
            **self._with_intervals(Law._asdict),
            "noise_sd": self.noise_sd,
            "warnings": self.warnings,
        }

    def split(self, flops: float) -> dict[str, Any]:
        """The compute-optimal N, D and loss for a budget of 6 N D FLOPs, each with its 95 %
        interval.
        """
        return {"flops": flops, **self._with_intervals(lambda law: law.split(flops))}

    def _with_intervals(self, numbers_of: Callable[[Law], dict[str, float]]) -> dict[str, Any]:
        """Numbers of the law, each with the interval that the refits give it."""
        draws = [numbers_of(draw) for draw in self.draws]
        numbers: dict[str, Any] = {}
        for name, value in numbers_of(self.law).items():
            numbers[name] = value
            numbers[f"{name}_ci95"] = self.interval([draw[name] for draw in draws])
        return numbers

    def interval(self, values: Sequence[Numbers], level: float = 0.95) -> list[float]:
        """Percentile interval of a value computed from each of `draws`."""
        return np.quantile(np.asarray(values), [(1 - level) / 2, (1 + level) / 2]).tolist()

    def forecast(self, n: float, d: float) -> dict[str, Any]:
        """Loss to expect of one new run: the law's value, and a 90 % interval that holds the run's
        own noise too.
        """
        noise = np.random.default_rng(0).normal(0, self.noise_sd, len(self.draws))
        runs = [law.loss(n, d) * np.exp(e) for law, e in zip(self.draws, noise, strict=True)]
        return {"loss": float(self.law.loss(n, d)), "loss_ci90": self.interval(runs, 0.90)}

    @property
    def warnings(self) -> list[str]:
        """Why the grid may not determine the law."""
        warnings = []
        for name in ("alpha", "beta"):
            exponent = getattr(self.law, name)
            low, high = self.interval([getattr(draw, name) for draw in self.draws])
            if high > 2 * exponent or low < exponent / 2:
                warnings.append(
                    f"{name} is not determined: its 95 % interval is {low:.3g} to {high:.3g}; "
                    "widen the grid"
                )
        if self.law.E < 1e-3:
            warnings.append(
                "E came out as 0: these runs show no floor of the loss; forecasts far beyond them "
                "are guesses"
            )
        return warnings


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
    sizes, amounts, losses = (np.asarray(values, dtype=np.float64) for values in (n, d, loss))
    for values in (sizes, amounts, losses):
        if not (np.isfinite(values) & (values > 0)).all():
            raise InputError(
                "scaling fit: a size, token count or loss is not a positive number; leave that run "
                "out"
            )
    check_determined(sizes, amounts, equal_exponents)
    log_n = np.log(sizes)
    log_d = np.log(amounts)
    log_loss = np.log(losses)
    # About their means the problem is well conditioned.
    mean_n = log_n.mean()
    mean_d = log_d.mean()
    x = log_n - mean_n
    y = log_d - mean_d
    best = _best_fit(x, y, log_loss, _starts(x, y, log_loss, equal_exponents), delta)
    law = _law(best, mean_n, mean_d)
    fitted = np.log(law.loss(sizes, amounts))
    noise_sd = _noise_sd(log_loss - fitted, len(log_loss) - _parameters(equal_exponents))
    noise = np.random.default_rng(seed).normal(0, noise_sd, (resamples, len(log_loss)))
    draws = [
        _law(_best_fit(x, y, fitted + row, [best], delta), mean_n, mean_d)
        for row in tqdm(noise, desc=progress, disable=not progress)
    ]
    return Fit(law, draws, noise_sd)


def _noise_sd(residuals: np.ndarray, degrees_of_freedom: int) -> float:
    """Of the runs around the law, widened to what Student's t asks for so few degrees of
    freedom.
    """
    standard_deviation = np.sqrt(np.sum(residuals**2) / degrees_of_freedom)
    return float(standard_deviation * student_t.ppf(0.975, degrees_of_freedom) / norm.ppf(0.975))


def _parameters(equal_exponents: bool) -> int:
    return 4 if equal_exponents else 5


def check_determined(
    n: Sequence[float] | np.ndarray,
    d: Sequence[float] | np.ndarray,
    equal_exponents: bool = False,
    place: str = "scaling fit",
) -> None:
    """Raise InputError, beginning with `place`, unless runs of these sizes and data amounts can
    determine the law: one more run than it has parameters, and three sizes and amounts (two if
    `equal_exponents`).
    """
    parameters = _parameters(equal_exponents)
    if len(n) <= parameters:
        raise InputError(
            f"{place}: {len(n)} runs cannot determine {parameters} parameters; give at least "
            f"{parameters + 1}"
        )
    least = parameters - 2
    for name, values in (("model sizes", n), ("data amounts", d)):
        different = len(np.unique(values))
        if different < least:
            raise InputError(
                f"{place}: {different} different {name}; the law needs at least "
                f"{least} to tell its floor from its slope: add cells to the grid"
            )


def _objective(
    free: np.ndarray, x: np.ndarray, y: np.ndarray, w: np.ndarray, delta: float
) -> tuple[float, np.ndarray]:
    """Summed Huber loss, scaled by 1 / delta^2 so that L-BFGS does not stop early, and its
    gradient.
    """
    e, a, b, alpha, beta = free[FIVE]
    logs = np.stack([np.full_like(x, e), a - alpha * x, b - beta * y])
    terms = np.exp(np.minimum(logs, 50.0))  # a wild step of the search overflows nothing
    total = terms.sum(axis=0)
    error = (np.log(total) - w) / delta
    slope = np.clip(error, -1, 1)
    pull = terms * (slope / total / delta)
    alpha_gradient = -(pull[1] * x).sum()
    beta_gradient = -(pull[2] * y).sum()
    exponents = [alpha_gradient, beta_gradient]
    if len(free) == 4:
        exponents = [alpha_gradient + beta_gradient]
    huber = (slope * (error - slope / 2)).sum()
    return float(huber), np.array([*pull.sum(axis=1), *exponents])


def _starts(x: np.ndarray, y: np.ndarray, w: np.ndarray, equal_exponents: bool) -> list[np.ndarray]:
    """The best points of a grid over the exponents; E, A, B by non-negative least squares of
    relative errors.
    """
    points = []
    for exponents in itertools.product(EXPONENTS, repeat=1 if equal_exponents else 2):
        terms = [np.ones_like(x), np.exp(-exponents[0] * x), np.exp(-exponents[-1] * y)]
        relative_terms = np.stack(terms, 1) / np.exp(w)[:, None]
        scales, error = nnls(relative_terms, np.ones_like(w))
        log_scales = np.log(np.maximum(scales, TINY))
        points.append((error, np.array([*log_scales, *exponents])))
    points.sort(key=lambda point: point[0])
    return [start for _, start in points[:STARTS]]


def _best_fit(
    x: np.ndarray, y: np.ndarray, w: np.ndarray, starts: list[np.ndarray], delta: float
) -> np.ndarray:
    """The lowest end over all starts; exponents beyond 3 are those of no run that was ever made."""
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
