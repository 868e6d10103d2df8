"""The Serverless Workflow front end: conformance kit, checklist, examples, calls against stand-ins."""
