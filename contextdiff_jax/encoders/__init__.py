"""Frozen encoders (CLIP, T5) with their tokenizers, and published weights of every network."""
