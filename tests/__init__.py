"""Proof of what the project promises, through the doors that its users use."""
