"""What an objective's gradient is worth: identities, bias and noise of estimators."""
