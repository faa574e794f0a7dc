"""For operators: the list of jobs, versions out of service, circuits, the log of decisions, and scale."""
