"""Hugging Face models, adapters and tokenizers: where, which, how they are loaded."""
