"""Data of opd: configuration, tables, manifests, identities and errors. No I/O."""
