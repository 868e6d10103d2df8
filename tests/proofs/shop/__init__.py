"""Workflows of the proofs, which both the present code and the code of then can run."""
