"""What can be known before anything starts: batch layout, launch pairs, preflight rules. Pure: no torch, no clock."""
