"""Losses of the user's own: functions over categories, and the proof that they are losses."""
