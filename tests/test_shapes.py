"""The annotated shapes of the method's functions are checked in every test."""

import mlx.core as mx
import pytest
from jaxtyping import TypeCheckError

from mlx_hybrid.adapters.butterfly import householder_matrix


def test_a_wrong_shape_is_refused():
    assert householder_matrix(mx.ones((4, 2))).shape == (4, 4)
    with pytest.raises(TypeCheckError, match="householder_matrix"):
        householder_matrix(mx.ones(4))
