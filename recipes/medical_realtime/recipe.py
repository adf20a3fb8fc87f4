"""Clinical coding in real time: one BERT, trained in pure bf16, that answers in int8 within a latency budget.

Two tasks of a clinic's paperwork, on real data: the ICD-10 chapter of a diagnosis, and the organ systems that a
clinical finding concerns (several may apply). Weights, gradients and optimizer states are bf16; stochastic rounding
keeps the updates that rounding to the nearest loses. The budget `clinic` says how fast and exact the service must be.

    lmrecipes train medical_realtime                       about four minutes on two CPU cores
    lmrecipes latency runs/RUN                             is the budget kept? Exit code 1: no
    lmrecipes predict runs/RUN --precision int8 --serve    the service
    accelerate launch --config_file recipes/medical_realtime/zero2_pure_bf16.yaml recipes/medical_realtime/recipe.py
"""

from lmrecipes.launching import main
from lmrecipes.recipe import Batch, LatencyBudget, Model, Optimizer, Precision, Recipe, Schedule, Source, Task


def at(precision: Precision) -> Recipe:
    """The run at one precision of training."""
    return Recipe(
        name="medical_realtime",
        description="clinical coding and phenotypes by one BERT trained in 16 bits, served in 8",
        tasks={
            "icd10": Task(kind="classification", source=Source(offline="icd10_chapter", group="group"), weight=0.5),
            "hpo": Task(kind="multi_label", source=Source(offline="hpo_systems", group="group"), weight=0.5),
        },
        model=Model(pretrained="minilm", max_length=64, freeze=("embeddings.word_embeddings.*",)),
        batch=Batch(examples=64, micro_examples=64),
        optimizer=Optimizer(lr=3e-4),
        schedule=Schedule(steps=300),
        precision=precision,
        latency={"clinic": LatencyBudget(p99_ms=12, requests_per_second=100, loaded_p99_ms=40, margin=0.01)},
    )


def recipe() -> Recipe:
    """bf16 without master weights, stochastic rounding."""
    return at(Precision(master_weights="none", rounding="stochastic"))


def fp32() -> Recipe:
    """fp32 throughout: the control."""
    return at(Precision(compute="fp32"))


if __name__ == "__main__":
    main(recipe, fp32)
