"""Workflows for the tests, and a ledger in which their steps write down every real effect."""
