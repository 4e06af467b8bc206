"""Command line of opd: arguments, exit codes and what people see."""
