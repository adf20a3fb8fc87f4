"""A pretrained GPT (SmolLM2, 135M parameters) learns the four tasks of bert_multitask, and goes on reading speeches.

Regression, classification (2) and multi-label classification read the last token's vector of a causal trunk; language
modelling uses the trunk's own head, in the same run and in the same micro-batches. Adapters of rank 16 are trained, and
the heads.

    lmrecipes train gpt_multitask                      about six minutes on two CPU cores
    lmrecipes train gpt_multitask --full --zero 2      every weight, longer: for a GPU
"""

from lmrecipes.launching import main
from lmrecipes.recipe import Batch, Evaluation, Lora, Model, Optimizer, Recipe, Schedule, Source, Task


def offline(name: str) -> Source:
    """One of the offline data sets, split by its groups."""
    return Source(offline=name, group="group")


def recipe() -> Recipe:
    """About six minutes of training on two CPU cores."""
    return Recipe(
        name="gpt_multitask",
        description="one pretrained GPT on the tasks of bert_multitask, beside language modelling",
        tasks={
            "valence": Task(kind="regression", source=offline("vader_valence"), weight=0.36),
            "icd10": Task(kind="classification", source=offline("icd10_chapter"), weight=0.27),
            "hpo": Task(kind="multi_label", source=offline("hpo_systems"), weight=0.25),
            "era": Task(kind="classification", source=offline("sotu_era"), weight=0.08),
            "speeches": Task(kind="language_modelling", source=offline("sotu_speeches"), weight=0.04),
        },
        model=Model(pretrained="smollm2", pooling="last", max_length=64, lora=Lora(rank=16)),
        batch=Batch(examples=96, micro_examples=96),
        optimizer=Optimizer(lr=1e-3),
        schedule=Schedule(steps=90),
        evaluation=Evaluation(examples=500),
    )


def full() -> Recipe:
    """Every weight, ten times the steps."""
    short = recipe()
    changes = {
        "model": short.model.model_copy(update={"lora": Lora()}),
        "optimizer": short.optimizer.model_copy(update={"lr": 1e-4}),
        "schedule": Schedule(steps=900),
        "evaluation": Evaluation(examples=1500),
    }
    return short.model_copy(update=changes)


if __name__ == "__main__":
    main(recipe, full)
