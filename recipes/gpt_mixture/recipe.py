"""A pretrained GPT (SmolLM2, 135M parameters) goes on reading four domains: speeches, scripture, code, medicine.

State of the Union addresses, the King James Bible, Python's standard library and articles on clinical terms are mixed
by weights in tokens. Speeches, chapters, packages and families of terms are held out; loss, perplexity and bits per
byte are given for each domain, beside what the model knew before.

    lmrecipes train gpt_mixture                       about five minutes on two CPU cores
    lmrecipes train gpt_mixture --full --zero 2       each domain once or twice, in longer texts: for a GPU
    lmrecipes train gpt_mixture --scratch             a small GPT and its tokenizer, both from nothing
    accelerate launch --config_file recipes/gpt_mixture/zero2_bf16.yaml recipes/gpt_mixture/recipe.py
"""

from lmrecipes.launching import main
from lmrecipes.recipe import Batch, Evaluation, Mixture, Model, Optimizer, Recipe, Schedule, Source, Task


def domain(offline: str, weight: float) -> Task:
    """Documents of one of the offline data sets, held out by its groups."""
    return Task(kind="language_modelling", source=Source(offline=offline, group="group"), weight=weight)


def recipe() -> Recipe:
    """About five minutes of training on two CPU cores."""
    return Recipe(
        name="gpt_mixture",
        description="one pretrained GPT continued on four domains: speeches, scripture, code, medicine",
        tasks={
            "speeches": domain("sotu_speeches", 0.25),
            "scripture": domain("kjv_chapters", 0.25),
            "code": domain("python_stdlib", 0.25),
            "medicine": domain("hpo_articles", 0.25),
        },
        mixture=Mixture(unit="tokens"),
        loss_normalization="none",  # the loss is in nats per token
        model=Model(pretrained="smollm2", max_length=256),
        batch=Batch(examples=16, micro_examples=16),
        optimizer=Optimizer(lr=3e-4, betas=(0.9, 0.95)),
        schedule=Schedule(steps=70, warmup_fraction=0.1),
        evaluation=Evaluation(examples=64, micro_examples=16, start=True, samples=1),
    )


def full() -> Recipe:
    """Each domain once or twice, in texts of 1,024 tokens: for a GPU."""
    changes = {
        "model": Model(pretrained="smollm2", max_length=1024),
        "batch": Batch(examples=64, micro_examples=16),
        "schedule": Schedule(steps=500, warmup_fraction=0.05, decay="cosine"),
        "evaluation": Evaluation(examples=512, start=True, samples=2),
    }
    return recipe().model_copy(update=changes)


def scratch() -> Recipe:
    """A GPT of 10M parameters from random weights, with a tokenizer trained on the mixture."""
    shape = {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 6, "num_attention_heads": 5}
    config = {"model_type": "llama", **shape, "max_position_embeddings": 256, "tie_word_embeddings": True}
    changes = {
        "model": Model(config=config, tokenizer_vocabulary=8192, max_length=256),
        "batch": Batch(examples=32, micro_examples=32),
        "optimizer": Optimizer(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1),
        "schedule": Schedule(steps=300, warmup_fraction=0.1),
    }
    return recipe().model_copy(update=changes)


if __name__ == "__main__":
    main(recipe, full, scratch)
