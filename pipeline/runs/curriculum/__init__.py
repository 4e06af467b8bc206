"""What changes from round to round: values of a schedule, and prompts drawn by difficulty."""
