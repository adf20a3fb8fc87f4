"""Where precision hurts, layer by layer: a few real steps measured, judged against a budget, and a plan from it."""
