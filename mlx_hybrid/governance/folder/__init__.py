"""What a governed folder holds beside its records."""
