"""Offline data: one schema, every common format in and out."""
