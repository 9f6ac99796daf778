"""Persimmon: the decoder of Fuyu."""
