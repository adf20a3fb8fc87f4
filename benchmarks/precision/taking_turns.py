"""Steps of a recipe, one at a time when asked (../training/turns.py).

python benchmarks/precision/taking_turns.py RECIPE.yaml FOLDER STEPS
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "training"))

from turns import Turns

from lmrecipes.launching import quieten
from lmrecipes.recipe_files import find_recipe
from lmrecipes.training.loop import Start, Training


def main() -> None:
    """Train on one process."""
    recipe_file, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    turns = Turns()
    quieten()
    training = Training(find_recipe(recipe_file).build(), Start(run=folder))
    steps = training.stream.steps(0, count)
    for _ in range(count):
        turns.wait()
        step = next(steps)
        metrics, _outcome = training.one_step(step)
        tokens = sum(step.tokens.values())
        turns.tell(tokens, tokens, metrics["loss"])
    turns.wait()


if __name__ == "__main__":
    main()
