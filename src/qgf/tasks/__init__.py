"""Environments, and the processes that step them."""
