"""Measurements of the library, also side by side with the code published with the paper."""
