"""Where single stages stand."""
