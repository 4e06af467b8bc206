"""Teachers: who may score this student, what they read, what their scores are worth."""
