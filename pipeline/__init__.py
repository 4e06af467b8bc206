"""The work of opd, in rooms; README.md has the map, pyproject.toml the directions of imports."""
