"""Facts, their splits, and the token ids of their pairs."""
