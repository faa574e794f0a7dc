"""Converts request bodies to samples, with one reader per format."""
