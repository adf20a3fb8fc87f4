"""A pretrained GPT (SmolLM2, 135M parameters) learns to answer from four chat data sets in four different layouts.

Clinical terms defined (Alpaca), chapters of diagnoses (prompt and completion), excerpts of Python's documentation
(messages, with system prompts) and conversations of several turns (ShareGPT) are told apart by their columns and
rendered by the model's own chat template; only what the assistant says carries loss.

    lmrecipes train gpt_chat                      all weights: about five minutes on two CPU cores
    lmrecipes train gpt_chat --lora               low-rank adapters beside frozen weights
    lmrecipes train gpt_chat --full --zero 2      longer conversations, six times as many: for a GPU
    accelerate launch --config_file recipes/gpt_chat/zero2_bf16.yaml recipes/gpt_chat/recipe.py
"""

from lmrecipes.launching import main
from lmrecipes.recipe import Batch, Evaluation, Lora, Mixture, Model, Optimizer, Recipe, Schedule, Source, Task


def conversations(offline: str, weight: float) -> Task:
    """Conversations of one of the offline data sets, held out by its groups."""
    return Task(kind="chat", source=Source(offline=offline, group="group"), weight=weight)


def recipe() -> Recipe:
    """All weights are trained: about five minutes on two CPU cores."""
    return Recipe(
        name="gpt_chat",
        description="one pretrained GPT learns to answer from four chat data sets in four layouts",
        tasks={
            "terms": conversations("hpo_questions", 0.35),
            "diagnoses": conversations("icd10_questions", 0.2),
            "python": conversations("python_questions", 0.3),
            "dialogues": conversations("chat_dialogues", 0.15),
        },
        mixture=Mixture(unit="supervised_tokens"),
        loss_normalization="none",  # the loss is in nats per token
        model=Model(pretrained="smollm2", max_length=256),
        batch=Batch(examples=32, micro_examples=32),
        optimizer=Optimizer(lr=2e-4, betas=(0.9, 0.95)),
        schedule=Schedule(steps=70, warmup_fraction=0.1),
        evaluation=Evaluation(examples=64, micro_examples=16, start=True, samples=1),
    )


def lora() -> Recipe:
    """Adapters of rank 16 beside frozen weights."""
    short = recipe()
    changes = {
        "model": short.model.model_copy(update={"lora": Lora(rank=16, alpha=32)}),
        "optimizer": short.optimizer.model_copy(update={"lr": 2e-3}),
    }
    return short.model_copy(update=changes)


def full() -> Recipe:
    """Conversations of up to 1,024 tokens, six times as many: for a GPU."""
    short = recipe()
    changes = {
        "model": short.model.model_copy(update={"max_length": 1024}),
        "batch": Batch(examples=64, micro_examples=32),
        "schedule": Schedule(steps=200, warmup_fraction=0.05, decay="cosine"),
        "evaluation": Evaluation(examples=512, start=True, samples=2),
    }
    return short.model_copy(update=changes)


if __name__ == "__main__":
    main(recipe, lora, full)
