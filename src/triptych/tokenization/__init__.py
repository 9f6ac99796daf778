"""Text ↔ token ids: what every tokenizer shares."""
