"""Weights and loss factors that follow the losses, each change an entry of an append-only plan."""
