"""The method: orthogonal and low-rank branches on frozen, perhaps quantised, linear layers."""
