"""The web page at `/`: the pool as it is now, its last day, and a form that sends predictions."""
