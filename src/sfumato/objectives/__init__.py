"""Batches in, losses out."""
