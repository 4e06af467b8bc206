"""What looks wrong in a run, in words: rules as data over figures of its newest rounds."""
