"""lmrecipes: fine-tune GPT- and BERT-style models on mixed data, for several tasks at once.

Importing the package costs nothing: it loads neither torch nor transformers.
"""

__version__ = "0.1.0"
