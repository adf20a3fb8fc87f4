"""Several models become one: three BERTs and a GPT on the same tasks, their average, stack and soup, and a student.

The members differ in the order of their data, and one of them in kind; the BERTs start from the same weights, so that
their weights can be averaged too. Their rate ends above 0: an average of weights that still move gains more. The
student starts from that average, and learns from what the three together say of its rows beside the labels.

    ./launch/ensemble                        all of it, about half an hour on two CPU cores; goes on where it stopped
    lmrecipes train ensemble --seed 1        one BERT
    lmrecipes train ensemble --gpt           the GPT
    lmrecipes combine RUN RUN RUN RUN --method distil --student "ensemble --student" --control
"""

from lmrecipes.launching import main
from lmrecipes.recipe import Batch, Distillation, Lora, Model, Optimizer, Recipe, Schedule, Source, Task


def offline(name: str) -> Source:
    """One of the offline data sets, split by its groups."""
    return Source(offline=name, group="group")


def recipe() -> Recipe:
    """A BERT: a member, in about three minutes on two CPU cores."""
    return Recipe(
        name="ensemble",
        description="members, combinations and a student on four text tasks",
        tasks={
            "valence": Task(kind="regression", source=offline("vader_valence"), weight=0.38),
            "icd10": Task(kind="classification", source=offline("icd10_chapter"), weight=0.28),
            "hpo": Task(kind="multi_label", source=offline("hpo_systems"), weight=0.26),
            "era": Task(kind="classification", source=offline("sotu_era"), weight=0.08),
        },
        model=Model(pretrained="minilm", max_length=64, freeze=("embeddings.word_embeddings.*",)),
        batch=Batch(examples=128, micro_examples=128),
        optimizer=Optimizer(lr=3e-4),
        schedule=Schedule(steps=300, final_fraction=0.3),
    )


def gpt() -> Recipe:
    """A GPT with adapters: another member, in about five minutes."""
    changes = {
        "model": Model(pretrained="smollm2", pooling="last", max_length=64, lora=Lora(rank=16)),
        "batch": Batch(examples=96, micro_examples=96),
        "optimizer": Optimizer(lr=1e-3),
        "schedule": Schedule(steps=90),
    }
    return recipe().model_copy(update=changes)


def student() -> Recipe:
    """A BERT that learns from a teacher: --distillation.teacher RUN; from where another stands: --model.pretrained."""
    learning = {"schedule": Schedule(steps=450), "distillation": Distillation(weight=0.7, temperature=2)}
    return recipe().model_copy(update=learning)


if __name__ == "__main__":
    main(recipe, gpt, student)
