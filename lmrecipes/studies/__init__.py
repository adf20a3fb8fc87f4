"""Studies: variants of a recipe compared over seeds, and gates on what they reach."""
