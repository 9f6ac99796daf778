"""What makes PyTorch fast: the cache and the attention implementations."""
