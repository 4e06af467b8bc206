"""An own run from nothing: `opd init` and `opd try`."""
