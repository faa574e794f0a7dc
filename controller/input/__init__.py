"""Request bodies to samples, one reader per format."""
