"""The tokenizers of GPT-2, which GPT Neo uses."""
