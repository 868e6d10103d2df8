"""A module without workflows."""
