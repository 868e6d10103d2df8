"""Definitions: registered as documents, listed, read back."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify, request

from orchestrator.api import asked
from orchestrator.api.runner import runner
from orchestrator.definition.documents import read_document
from orchestrator.definition.validate import check
from orchestrator.steps.registry import REGISTRY

blueprint = Blueprint("definitions", __name__, url_prefix="/workflow")


@blueprint.post("/definitions")
def register() -> tuple[Response, int]:
    """Register a workflow document.

    A document in YAML or JSON as the body. Every fault at once, with its line and column. 200 when it is registered already as it is.
    """
    text = request.get_data(as_text=True)
    definition = read_document(text, "request.json" if request.is_json else "request.yaml")
    check(definition, REGISTRY)
    _, changed = runner().put_workflow(definition, text, tenant=asked.tenant())
    about = {"workflow": definition.name, "namespace": definition.namespace, "version": definition.version}
    return jsonify({**about, "status": "registered" if changed else "unchanged"}), 201 if changed else 200


@blueprint.get("/definitions")
def listing() -> Response:
    """List workflow definitions."""
    found = [
        {
            "workflow": stored.name,
            "namespace": stored.namespace,
            "version": stored.version,
            "form": "document" if stored.source else "python",
        }
        for stored in runner().workflows()
        if asked.sees(stored)
    ]
    return jsonify({"definitions": found})
