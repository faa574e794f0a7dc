"""The web page at `/`: the current pool, its last 24 hours, and a form that sends predictions."""
