"""One module per subcommand of `modelyard`."""
