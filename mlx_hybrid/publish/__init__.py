"""Cards, and what is published on the Hub."""
