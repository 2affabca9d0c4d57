"""Records: their shapes, files, languages, split, and the tokens they become."""
