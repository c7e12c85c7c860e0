"""Capacity measures of trained networks."""
