"""Number formats: which module computes in which, how numbers are rounded, and what that loses."""
