"""The ``modelyard`` command, which composes the other packages."""
