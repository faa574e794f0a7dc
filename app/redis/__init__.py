"""Redis: keys, connections, URLs and scripts. Nothing else imports redis-py."""
