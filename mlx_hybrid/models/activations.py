"""Activations on a CPU where MLX takes exponentials one entry at a time (16 ns a sigmoid on x86), made of products and
sums, which it takes many at a time: a third of the time. A Mac's CPU and every GPU are quick by themselves."""

import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np

# tanh z = z P(z²) / Q(z²) on [−8.2, 8.2] with the least largest error, 8e-9, by Lawson's weights; beyond, over 1
TANH_P = (0.9999999616, 0.134255251, 0.003548937988, 2.151253754e-05, 1.467119358e-08)
TANH_Q = (1.0, 0.4675884263, 0.02607860334, 0.0003373898827, 8.300654445e-07)
FLAT = 9.2
GELU, CUBE = 2 * (2 / np.pi) ** 0.5, 0.044715  # Hendrycks & Gimpel 2016, arXiv 1606.08415
SILU, GELU_APPROX = nn.silu, nn.gelu_approx  # MLX's own


def exponentials_are_slow() -> bool:
    return mx.default_device() == mx.Device(mx.cpu) and sys.platform != "darwin"


def polynomial(coefficients: tuple[float, ...], x: mx.array) -> mx.array:
    y = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        y = y * x + coefficient
    return y


def sigmoid(x: mx.array) -> mx.array:
    """σ(x) = ½ (1 + tanh ½ x), within 2e-7; 0 and 1 from −18.4 and 18.4 on."""
    z = mx.clip(0.5 * x, -FLAT, FLAT)
    square = z * z
    return mx.clip(z * polynomial(TANH_P, square) / polynomial(TANH_Q, square), -1, 1) * 0.5 + 0.5


def with_slope(x: mx.array, value: mx.array, slope: mx.array) -> mx.array:
    """`value` whose gradient for x is `slope`, and whose second is 0: in plain operations, as a function compiled for
    every shape needs."""
    return mx.stop_gradient(value) + (x - mx.stop_gradient(x)) * mx.stop_gradient(slope)


def silu(x: mx.array) -> mx.array:
    """x σ(x)."""
    if x.dtype != mx.float32:
        return SILU(x)
    share = sigmoid(x)
    return with_slope(x, x * share, share * (1 + x * (1 - share)))


def gelu_approx(x: mx.array) -> mx.array:
    """½ x (1 + tanh √(2/π) (x + 0.044715 x³)) = x σ(2 √(2/π) (x + 0.044715 x³))."""
    if x.dtype != mx.float32:
        return GELU_APPROX(x)
    square = x * x
    share = sigmoid(x * (GELU + GELU * CUBE * square))
    return with_slope(x, x * share, share * (1 + (1 - share) * (x * (GELU + 3 * GELU * CUBE * square))))


def use_fast_activations() -> None:
    """Put them in the place of MLX's own, by whose names every model's code asks for them."""
    if exponentials_are_slow():
        for module in (nn, nn.layers.activations):
            module.silu, module.gelu_approx = silu, gelu_approx
