"""Measurements of speed, warm-up and quality; run by hand, never as tests."""
