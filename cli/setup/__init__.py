"""`opd init` and `opd try`: an own run from nothing."""
