"""What happened: metrics, trackers and the report."""
