"""Models: the base, what a name means, generation, the end of an answer."""
