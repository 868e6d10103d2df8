"""The smallest workflow: one step.

orchestrator start hello --input '{"name": "Ada"}'
"""

from orchestrator import Workflow, step


@step(type="hello.greet")
def greet(name: str = "world") -> dict[str, str]:
    return {"greeting": f"Hello, {name}!"}


hello = Workflow("hello", title="Says hello").then(greet)
