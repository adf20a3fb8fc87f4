"""Offline search of mixture weights: many short proxy runs, a regression from shares to losses, a measured answer."""
