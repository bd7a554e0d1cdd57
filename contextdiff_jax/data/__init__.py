"""Captioned images: sources, decoding, and deterministic batches."""
