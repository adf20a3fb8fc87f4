"""BERT on the tasks of bert_multitask with every number in 16 bits: half of the memory, and the accuracy of fp32.

Weights, gradients and optimizer states are bf16, without fp32 master weights; stochastic rounding keeps the updates
that rounding to the nearest loses. The gate `parity` holds it against fp32 over five seeds. Each other precision is a
variant of the same run.

    lmrecipes train bert_low_precision                     less than a minute on two CPU cores
    lmrecipes gate bert_low_precision                      is it as good as fp32? Exit code 1: no
    lmrecipes study bert_low_precision --seeds 5           all variants: metrics, time and memory beside each other
    accelerate launch --config_file recipes/bert_low_precision/zero2_pure_bf16.yaml recipes/bert_low_precision/recipe.py
"""

from lmrecipes.launching import main
from lmrecipes.recipe import Batch, Gate, Model, Optimizer, Precision, Recipe, Schedule, Source, Task


def offline(name: str) -> Source:
    """One of the offline data sets, split by its groups."""
    return Source(offline=name, group="group")


def at(precision: Precision) -> Recipe:
    """The run at one precision, held to fp32's results."""
    return Recipe(
        name="bert_low_precision",
        description="one pretrained BERT on four text tasks, in low precision that holds its accuracy",
        tasks={
            "valence": Task(kind="regression", source=offline("vader_valence"), weight=0.38),
            "icd10": Task(kind="classification", source=offline("icd10_chapter"), weight=0.28),
            "hpo": Task(kind="multi_label", source=offline("hpo_systems"), weight=0.26),
            "era": Task(kind="classification", source=offline("sotu_era"), weight=0.08),
        },
        model=Model(pretrained="minilm", max_length=64, freeze=("embeddings.word_embeddings.*",)),
        batch=Batch(examples=64, micro_examples=64),
        optimizer=Optimizer(lr=3e-4),
        schedule=Schedule(steps=100),
        precision=precision,
        gates={"parity": Gate(reference=Precision(compute="fp32"), seeds=5, margin=0.01)},
    )


def recipe() -> Recipe:
    """bf16 without master weights, stochastic rounding."""
    return at(Precision(master_weights="none", rounding="stochastic"))


def kahan() -> Recipe:
    """bf16 without master weights, compensated summation."""
    return at(Precision(master_weights="none", rounding="kahan"))


def nearest() -> Recipe:
    """bf16 without master weights, rounding to the nearest: small updates are lost."""
    return at(Precision(master_weights="none"))


def fp8() -> Recipe:
    """Matrix products of the inner layers in fp8, of the first and the last in bf16, of the heads in fp32."""
    kept = {"encoder.layer.0": "bf16", "encoder.layer.5": "bf16", "heads.*": "fp32"}
    return at(Precision(layers={"encoder.layer.*": "fp8", **kept}, fp8="emulated"))


def bf16() -> Recipe:
    """bf16 products on fp32 weights: mixed precision."""
    return at(Precision(compute="bf16"))


def fp32() -> Recipe:
    """fp32 throughout."""
    return at(Precision(compute="fp32")).model_copy(update={"gates": {}})


if __name__ == "__main__":
    main(recipe, kahan, nearest, fp8, bf16, fp32)
