"""The start-up probe of images and clips: does each lie where its example is, and nowhere else?

Examples of texts, images and clips, alone and together, go through the wrapped model in one micro-batch. Then one image
is changed, then one clip: no other example may move. And each example must be read as it is alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lmrecipes.data.inputs import Specs
from lmrecipes.data.layout import Arrangement
from lmrecipes.problems import Problem
from lmrecipes.training.engine import Engine
from lmrecipes.training.mixed_examples import MixedExamples, mixed_examples
from lmrecipes.training.reading import judge


def media_problem(engine: Engine, arrangement: Arrangement, longest: int, seed: int, specs: Specs) -> Problem | None:
    """What is wrong, if anything. longest: positions of the longest example of the run. Every rank must call it."""
    vocabulary = int(engine.module.trunk.model.config.vocab_size)
    examples = mixed_examples(specs, vocabulary, longest, seed)
    before = _vectors(engine, examples, specs, arrangement)
    with engine.module.trunk.native():
        alone = torch.cat([_vectors(engine, examples, specs, Arrangement("padded"), i) for i in range(len(before))])
    problems = []
    for modality in specs:  # all of them: under ZeRO-3 every rank must call the model as often as the others
        changed = mixed_examples(specs, vocabulary, longest, seed, other=modality)
        moved = (_vectors(engine, changed, specs, arrangement) - before).norm(dim=1)
        first = next(i for i, held in enumerate(examples.held) if modality in held)
        moved = torch.cat([moved[first : first + 1], moved[:first], moved[first + 1 :]])
        problems.append(judge(before, alone, moved, engine.compute_dtype, arrangement.layout))
    return next(filter(None, problems), None)


def _vectors(
    engine: Engine, examples: MixedExamples, specs: Specs, cut: Arrangement, only: int | None = None
) -> Tensor:
    """Of all examples in their order, or of one alone: fp32 [examples, hidden]."""
    if only is not None:
        return engine.vectors(examples.batch([np.array([only])], specs, cut)).float()
    lengths = np.diff(examples.offsets)
    parts = [part for part in cut.parts(np.argsort(-lengths, kind="stable"), lengths) if len(part)]
    found = engine.vectors(examples.batch(parts, specs, cut)).float()
    return found[torch.from_numpy(np.argsort(np.concatenate(parts)))]
