"""The checks that a record passes."""
