"""The Serverless Workflow DSL (now Open Workflow Specification) as a front end: documents become task trees.

`v1` reads DSL 1.0.x. The JSON schema in `schemas/` is the specification's own (Apache-2.0); semantic
checks that a schema cannot express stand beside the reader. Decisions where the specification is silent:
docs/reference/serverless-workflow/decisions.md.
"""
