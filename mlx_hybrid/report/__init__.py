"""Pages and figures from a run or a comparison."""
