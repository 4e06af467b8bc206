"""`[storage]`: how to reach the store."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.config.section import Few, Seconds, Section, tuning

Rate = Annotated[float, Field(ge=1.0, le=1e12)]


class StorageSection(Section):
    """`[storage]`: how to reach the store; credentials come from `AWS_*` variables only."""

    retry_s: Seconds = tuning(60.0)
    """Seconds for which a failing request is repeated, with growing pauses, before giving up."""
    connect_timeout_s: Seconds = tuning(5.0)
    """Seconds to wait for a connection."""
    read_timeout_s: Seconds = tuning(60.0)
    """Seconds to wait for a reply, and for the next bytes of one."""
    min_bytes_per_s: Rate = tuning(16384.0)
    """Bytes per second below which a request counts as silent, and is given up as one is."""
    lease_s: Seconds = tuning(60.0)
    """Seconds after which another worker takes over the unit of one that fell silent."""
    stall_s: Seconds = tuning(3600.0)
    """Seconds without progress after which a worker stops to renew its leases, so that others take
    over its units; must be longer than it takes to load a model, or to do one batch or step."""
    single_writer: bool = tuning(False)
    """Whether only one opd process writes to the root at a time, which you make sure of. For stores
    that ignore create-only writes (`If-None-Match`), which are refused otherwise."""
    max_connections: Few = tuning(64)
    """Connections held to an object store."""
    addressing_style: Literal["auto", "path", "virtual"] = tuning("auto")
    """Where the bucket name goes in S3 requests; many self-hosted stores need `path`."""
    checksum_calculation: Literal["when_supported", "when_required"] = tuning("when_supported")
    """S3 checksum trailers; `when_required` for stores that refuse or corrupt them."""
