"""Redis: keys, connections, URLs and scripts. No other package imports redis-py."""
