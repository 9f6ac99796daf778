"""Generation: its configuration, streamers, stopping criteria, logits transforms and decoding loops."""
