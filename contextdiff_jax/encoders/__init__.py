"""Frozen encoders of text and images: CLIP, T5, their tokenizers and their published weights."""
