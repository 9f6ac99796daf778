"""Fuyu: text and image patches in one decoder."""
