"""The annotated shapes of the method's functions are checked in every test."""

import mlx.core as mx
import pytest
from jaxtyping import TypeCheckError

from mlx_hybrid.adapters.householder import householder_core


def test_a_wrong_shape_is_refused():
    assert householder_core(mx.ones((4, 2))).shape == (2, 2)
    with pytest.raises(TypeCheckError, match="householder_core"):
        householder_core(mx.ones(4))
