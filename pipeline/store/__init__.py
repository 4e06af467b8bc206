"""Bytes at keys: folders, S3, memory; and the moment at which they become visible."""
