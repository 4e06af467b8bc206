"""A run as one page that people forward: figures from stored records, charts, transcripts."""
