"""The engine `hf`: transformers, the reference."""
