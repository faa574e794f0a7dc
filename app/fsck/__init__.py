"""The consistency check and repair behind `modelyard doctor`."""
