"""Datasets, architectures, fit and evaluate, log and register in MLflow."""
