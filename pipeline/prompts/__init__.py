"""Prompt files become pinned token ids."""
