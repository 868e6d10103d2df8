"""Ours beside bare Celery, DBOS and a floor, on the same servers in the same run."""
