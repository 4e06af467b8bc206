"""Names of objects in a root: what docs/storage.md draws. Pure."""


def commit_key(folder: str, unit: str) -> str:
    """Return the key of a unit's commit."""
    return f"{folder}/commits/{unit}.json"


def scorer_folder(scorer: str) -> str:
    """Return the key prefix of a scorer's cache."""
    return f"cache/{scorer}"


def name_key(name: str) -> str:
    """Return the key of the record that gives a scorer a name."""
    return f"scorers/{name}.json"
