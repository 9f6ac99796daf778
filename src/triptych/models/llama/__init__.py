"""The tokenizers of Llama, which Fuyu and Persimmon use."""
