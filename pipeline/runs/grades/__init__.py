"""What the grades of an evaluation say: intervals, and how often one sample of several is right."""
