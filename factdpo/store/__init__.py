"""What lies on the disk: cache, results, histories, and the index of them."""
