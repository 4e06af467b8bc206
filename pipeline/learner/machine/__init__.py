"""What the processes of the learner on one machine share."""
