"""Faults that were found by using the system, each with a test that failed when it was found.

`make proves N=34` runs the tests of number 34 twice: against the code in which the fault was found (commit BASE, in a work
tree of its own) and against the present one. So these tests speak only to what both have: commands, HTTP, SQL, documents, and the
names in `system.py`.
"""
