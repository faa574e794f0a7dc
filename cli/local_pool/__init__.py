"""The pool that `modelyard up` runs on one machine."""
