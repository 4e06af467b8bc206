"""Where prompt files lie: folders, and services that are read through fsspec."""
