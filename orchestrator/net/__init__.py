"""Going out: which addresses may be called, with what credentials, and how much of an answer is read."""
