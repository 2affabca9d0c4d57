"""Label-free checks that decide which records are trained on, and say why."""
