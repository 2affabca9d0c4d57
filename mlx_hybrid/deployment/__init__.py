"""Chat, serving, merging and export."""
