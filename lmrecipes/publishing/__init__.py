"""Finished models for others: their cards, folders to hand on, the hub."""
