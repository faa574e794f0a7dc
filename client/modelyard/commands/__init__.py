"""The `modelyard` command and those of its subcommands that talk to a controller."""
