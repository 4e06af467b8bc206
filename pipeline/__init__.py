"""The work of opd, in rooms; README.md has the map, pyproject.toml the directions of imports.

The names of the Python API, `import pipeline as opd`, are looked for when they are used (PEP 562):
every program of opd imports this file, and most need none of them.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.api.opened import OpenRun as OpenRun
    from pipeline.api.opened import open_run
    from schemas.errors import OpdError as OpdError

    open = open_run  # noqa: A001  # it is `opd.open`
else:

    def __getattr__(name: str) -> object:
        """Return a name of the API, imported now."""
        if name == "OpdError":
            from schemas.errors import OpdError

            return OpdError
        if name in ("OpenRun", "open"):
            from pipeline.api.opened import OpenRun, open_run

            return {"OpenRun": OpenRun, "open": open_run}[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        """Return the names of the API, for completion."""
        return ["OpdError", "OpenRun", "open"]
