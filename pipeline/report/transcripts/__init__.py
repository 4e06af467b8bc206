"""Transcripts of a report: which sequences, in which pieces of text, as what data."""
