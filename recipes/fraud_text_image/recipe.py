"""Fraud that neither modality shows: a cheque is read as words and as a picture together, for one decision.

Each cheque is an amount in words beside the amount in real handwritten digits; a fraud is where they differ. The task
`amounts` (words, pictures, or both: a row may lack one) teaches to read. Real spam mails are a task beside them. The
controls hide one half of the cheques.

    lmrecipes train fraud_text_image --processes 2 --zero 2    about ten minutes on two CPU cores
    lmrecipes study fraud_text_image --variants recipe text_only image_only --seeds 1
    accelerate launch --config_file recipes/fraud_text_image/zero2_bf16.yaml recipes/fraud_text_image/recipe.py
"""

from lmrecipes.launching import main
from lmrecipes.recipe import Augment, Batch, ImageAugment, ImageFrontEnd, Mixture, Model, Recipe, Schedule, Source, Task
from lmrecipes.recipe import Waypoint as At

PICTURE = Augment(image=ImageAugment(shift=1, rotate=2, scale=0.03))


def of(cheques: Source, changed: Augment = PICTURE) -> Recipe:
    """The run with these cheques."""
    amounts = Source(offline="cheque_amounts", group="group", text="text", image="image")
    mails = Source(offline="spam_mails", group="group")
    return Recipe(
        name="fraud_text_image",
        description="cheques read as words and picture together, and spam mails: fraud that one modality cannot show",
        tasks={
            "cheques": Task(kind="classification", source=cheques, max_length=24, augment=changed),
            "amounts": Task(kind="multi_label", source=amounts, max_length=24, augment=PICTURE),
            "mails": Task(kind="classification", source=mails, weight=0.05, max_length=64),
        },
        # Reading comes first: until digits and words are read alike, there is nothing to compare.
        mixture=Mixture(
            schedule=(
                At(at=0.0, weights={"cheques": 0.2, "amounts": 0.75}),
                At(at=0.25, weights={"cheques": 0.65, "amounts": 0.3}),
            ),
            between="linear",
        ),
        # One patch for each box of a digit: what is read is one position of the trunk, as a word is.
        model=Model(
            pretrained="minilm",
            max_length=64,
            freeze=("embeddings.word_embeddings.*",),
            image=ImageFrontEnd(height=16, width=48, channels=1, patch=16),
        ),
        batch=Batch(examples=64, micro_examples=64),
        schedule=Schedule(steps=2000),
    )


def recipe() -> Recipe:
    """Words and picture."""
    return of(Source(offline="cheques", group="group", text="text", image="image"))


def text_only() -> Recipe:
    """A control: the words of the cheques alone."""
    return of(Source(offline="cheques", group="group"), Augment())


def image_only() -> Recipe:
    """A control: the pictures of the cheques alone."""
    return of(Source(offline="cheques", group="group", image="image"))


if __name__ == "__main__":
    main(recipe, text_only, image_only)
