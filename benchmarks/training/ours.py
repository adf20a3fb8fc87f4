"""Steps of ours, one at a time when asked (turns.py): the real loop's `one_step` on the recipe's own stream.

    python benchmarks/training/ours.py RECIPE.yaml FOLDER STEPS

Before the first step, FOLDER gets the run's first STEPS steps as other programs train on them (dumped.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

from dumped import dump, positions_of, tokens_of
from turns import Turns

from lmrecipes.launching import quieten
from lmrecipes.recipe_files import find_recipe
from lmrecipes.training.loop import Start, Training
from lmrecipes.training.schedule import learning_rate


def main() -> None:
    """Dump, then train."""
    recipe_file, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    turns = Turns()
    quieten()
    recipe = find_recipe(recipe_file).build()
    training = Training(recipe, Start(run=folder / "run"))
    rates = [learning_rate(recipe.schedule, recipe.optimizer.lr, step) for step in range(count)]
    dump(training.stream, rates, folder)
    steps = training.stream.steps(0, count)
    for _ in range(count):
        turns.wait()
        step = next(steps)
        metrics, _outcome = training.one_step(step)
        supervised = sum(step.elements.values())
        summed = sum(metrics[f"loss/{task}"] * elements for task, elements in step.elements.items() if elements)
        turns.tell(tokens_of(step), positions_of(step), summed / supervised)
    turns.wait()


if __name__ == "__main__":
    main()
