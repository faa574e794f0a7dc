"""Predicts the rows of a file into another file: in bounded memory, and resumable after a kill."""
