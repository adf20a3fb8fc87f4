"""One trunk and one head for each task."""
