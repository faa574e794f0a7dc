"""The processes of a worker: prefork supervisor, heartbeat, time limit, in-flight marker."""
