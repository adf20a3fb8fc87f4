"""A small perceptron (784 - 128 - 64 - 10) on real handwritten digits, in every number format.

Its layers are `layers.0` (W1), `layers.1` (W2) and the task's head `heads.digits` (W3). A variant is one declaration of
`precision`, and all else stays equal. Optimizers and losses are flags.

    lmrecipes train precision_mlp --kahan                  seconds on one CPU core
    lmrecipes train precision_mlp --fp16 --optimizer.name rmsprop --tasks.digits.loss mean_squared_error
"""

from typing import Any

from lmrecipes.launching import main
from lmrecipes.recipe import Batch, Evaluation, Mlp, Model, Optimizer, Precision, Recipe, Schedule, Source, Task


def digits(source: Source | None = None, steps: int = 400, **precision: Any) -> Recipe:
    """The same run in a precision."""
    source = source or Source(offline="digits", ids="ids", test_fraction=0.2)
    task = Task(kind="classification", labels=tuple("0123456789"), source=source, learning_rate_factor=1)
    return Recipe(
        name="precision_mlp",
        description="a perceptron on handwritten digits, in every number format",
        tasks={"digits": task},
        model=Model(mlp=Mlp(hidden=(128, 64), inputs=28 * 28, levels=256)),
        batch=Batch(examples=64, micro_examples=64),
        optimizer=Optimizer(lr=1e-3),
        schedule=Schedule(steps=steps),
        evaluation=Evaluation(examples=None, micro_examples=512),
        precision=Precision(**precision),
    )


def recipe() -> Recipe:
    """Products in bf16; weights and optimizer states in fp32."""
    return digits(compute="bf16")


def fp32() -> Recipe:
    """Everything in fp32."""
    return digits(compute="fp32")


def fp16() -> Recipe:
    """Products in fp16 with a dynamic loss scale; weights and optimizer states in fp32."""
    return digits(compute="fp16")


def by_layer() -> Recipe:
    """W1 and W2 in fp32, W3 in bf16."""
    return digits(compute="fp32", layers={"heads.*": "bf16"})


def fp8() -> Recipe:
    """Products of W1 and W2 rounded to fp8 (on any hardware), of W3 in bf16."""
    return digits(compute="bf16", layers={"layers.*": "fp8"}, fp8="emulated")


def nearest() -> Recipe:
    """No fp32 at all: weights, gradients and optimizer states in bf16, updates rounded to nearest."""
    return digits(compute="bf16", master_weights="none")


def stochastic() -> Recipe:
    """The same, with updates rounded up or down by chance."""
    return digits(compute="bf16", master_weights="none", rounding="stochastic")


def kahan() -> Recipe:
    """The same, with what rounding loses kept and added later."""
    return digits(compute="bf16", master_weights="none", rounding="kahan")


def mnist() -> Recipe:
    """MNIST in place of scikit-learn's digits."""
    images = {"train": "data/mnist/train-images-idx3-ubyte.gz", "test": "data/mnist/t10k-images-idx3-ubyte.gz"}
    return digits(Source(splits=images, ids="ids"), steps=4000, compute="bf16")


if __name__ == "__main__":
    main(recipe, fp32, fp16, by_layer, fp8, nearest, stochastic, kahan, mnist)
