"""How close is close: one named constant for each kind of comparison, and why it is what it is."""

ROUNDING = 1e-5
"""Two orders of the same float32 sums, of up to a few hundred terms near 1: about √n · 6e-8, and some room."""

IDENTITY = 1e-6
"""A fresh householder layer against its base, relative to max|y|: x − (xUT)Uᵀ cancels up to rounding."""

DEFECT = 1e-5
"""max|RRᵀ − I| that the design allows after any training."""

CAYLEY = 1e-6
"""The series of 32 terms at ‖Q‖₂ ≤ 0.5: truncation 0.5³² = 2e-10, the rest is float32 rounding of 8 × 8 products."""

CORRELATED = 2.5e-5
"""32 reflections whose columns correlate 0.9: the triangular factor has entries near 10, so rounding is tenfold."""

SINGULAR = 1e-5
"""Singular values of W Rᵀ against W's, relative to the largest."""

NUMERIC_GRADIENT = 1e-4
"""Autodiff in float32 against central differences in float64, relative to the largest entry."""

TORCH_GRADIENT = 1e-5
"""Autodiff of MLX in float32 against PyTorch's in float64, relative to the largest entry."""

LOGITS = 1e-4
"""Logits of a two-layer model by two orders of the same products, where logits are of size 1 to 10."""

ADAM = 2e-2
"""Parameters after a few AdamW steps from gradients equal to rounding, relative to the step: where a gradient is nearly
zero, AdamW divides rounding by rounding."""

EFFECT = 1e-3
"""What an adapter must change at the least for "equal to the layer" to say anything: ten times the widest tolerance."""
