"""Slow, obvious counterparts of the package's mathematics, in NumPy and float64."""

import math

import numpy as np


def gelu(x):
    """GELU in its tanh form (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mlp(network, *parts):
    """An MLP on the concatenation of its parts, as a textbook would write it."""
    x = np.concatenate([np.asarray(part, np.float64) for part in parts], axis=-1)
    for i, (kernel, bias) in enumerate(zip(network.kernels, network.biases, strict=True)):
        if i > 0:
            if i - 1 < len(network.scales):
                x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
                x = x * np.asarray(network.scales[i - 1]) + np.asarray(network.shifts[i - 1])
            x = gelu(x)
        x = x @ np.asarray(kernel, np.float64) + np.asarray(bias, np.float64)
    return x


def finite_differences(function, x, step=1e-6):
    """The gradient of function(x).sum() by central differences, entry by entry."""
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += step
        down[at] -= step
        gradient[at] = (function(up).sum() - function(down).sum()) / (2 * step)
    return gradient


def aggregate(values, how, kappa=0.0):
    """The smallest of an ensemble's values, or their mean less kappa deviations, row by row."""
    values = np.asarray(values, np.float64)
    return values.min(0) if how == "min" else values.mean(0) - kappa * values.std(0, ddof=0)


def expectile(values, weights, tau):
    """The m with tau E[(x - m)+] = (1 - tau) E[(m - x)+], by bisection."""
    low, high = min(values), max(values)
    for _ in range(100):
        m = (low + high) / 2
        above = sum(w * (x - m) for x, w in zip(values, weights, strict=True) if x > m)
        below = sum(w * (m - x) for x, w in zip(values, weights, strict=True) if x < m)
        low, high = (m, high) if tau * above > (1 - tau) * below else (low, m)
    return m


def jacobian(function, x, step=1e-6):
    """The matrix ∂function_i/∂x_j at one point x, by central differences."""
    x = np.asarray(x, np.float64)
    columns = [
        (function(x + step * unit) - function(x - step * unit)) / (2 * step)
        for unit in np.eye(len(x))
    ]
    return np.stack(columns, axis=-1)


def nearest_orthogonal(matrix):
    """The orthogonal factor of a regular matrix, by Newton's iteration (Higham 1986)."""
    for _ in range(60):
        matrix = (matrix + np.linalg.inv(matrix).T) / 2
    return matrix


def undecorated(function):
    """A function or method (then without self) whose annotations are not checked: a user's call."""
    function = getattr(function, "__func__", function)
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function
