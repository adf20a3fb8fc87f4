"""Sources -> encoded examples -> mixture schedule -> step layout -> batches."""
