"""Folders of this machine: files that appear whole or not at all, temporary folders."""
