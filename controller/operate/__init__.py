"""What operators see and decide beside the requests: jobs, versions out of service, circuits, decisions, scale."""
