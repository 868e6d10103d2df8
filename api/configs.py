"""Configurations of workflows (`/workflow/configs`): listed, put, compared, rolled back, taken to other environments."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import yaml
from flask import Blueprint, Response, jsonify, request

from orchestrator.api import asked
from orchestrator.api.runner import runner
from orchestrator.definition import configured
from orchestrator.definition.documents import parse
from orchestrator.errors import Fault, Invalid
from orchestrator.store.configs import Config

blueprint = Blueprint("configs", __name__, url_prefix="/workflow/configs")


def _body() -> Any:
    if not request.get_data(cache=True):
        raise Invalid([Fault("body", "a configuration is needed, in YAML or JSON")], "request")
    return parse(request.get_data(as_text=True), "request.json" if request.is_json else "request.yaml")


def _environment() -> str | None:
    return request.args.get("environment")


def _key(config: str) -> str:
    """`?nameSpace=` and `?version=`, of a configuration that is for these alone."""
    return configured.key(config, request.args.get("nameSpace"), request.args.get("version"))


def _shown(one: Config) -> dict[str, Any]:
    about = asdict(one)
    return {**(about.pop("spec") or {}), "version_number": about.pop("number"), **about}


@blueprint.get("")
def listing() -> Response:
    """List configurations.

    `?environment=`, `?workflowId=`, `?nameSpace=`, `?version=` of the workflow; `?format=yaml`. With files that are faulty now.
    """
    wanted = {"id": request.args.get("workflowId"), "nameSpace": request.args.get("nameSpace"), "version": request.args.get("version")}
    found = [
        one
        for one in runner().configs.all(asked.tenant(), _environment())
        if all(value is None or str((one.spec or {}).get(key)) == value for key, value in wanted.items())
    ]
    if request.args.get("format") == "yaml":
        return Response(
            yaml.safe_dump({"configs": [one.spec for one in found]}, sort_keys=False, allow_unicode=True), content_type="application/yaml"
        )
    return jsonify(
        {
            "configs": [_shown(one) for one in found],
            "environment": _environment() or runner().configs.environment,
            "faulty": runner().configs.faults(),
        }
    )


@blueprint.post("")
def save() -> tuple[Response, int]:
    """Create or change a configuration.

    In YAML or JSON. It holds from the next start on. `warnings`: what is probably not meant.
    """
    body = _body()
    saved = runner().configs.save(body, tenant=asked.tenant(), environment=_environment(), **asked.by_whom())
    return jsonify({**_shown(saved), "warnings": runner().configs.warnings(body, asked.tenant())}), 201


@blueprint.post("/validate")
def validate() -> Response:
    """Validate a configuration without keeping it.

    Every fault and every warning; nothing is kept.
    """
    return jsonify(runner().configs.validate(_body(), asked.tenant()))


@blueprint.post("/reload")
def reload() -> Response:
    """Read the files of CONFIG_DIR again.

    Read the files of CONFIG_DIR now.
    """
    return jsonify(runner().configs.load_files())


@blueprint.post("/hot-reload")
def watch() -> Response:
    """Switch the watching of configuration files on or off.

    `{enabled}`: whether files are read again when they change.
    """
    enabled = asked.body().get("enabled")
    if not isinstance(enabled, bool):
        raise Invalid([Fault("enabled", "true or false is needed")], "request")
    runner().configs.watch(enabled)
    return jsonify({"enabled": runner().configs.is_watching})


@blueprint.post("/migrate")
def migrate() -> Response:
    """Copy the configurations of one environment into another.

    `{from, to}`: what holds in one environment, in another; nothing where one would be refused there.
    """
    body = asked.body()
    return jsonify(runner().configs.migrate(str(body.get("from")), str(body.get("to")), tenant=asked.tenant(), **asked.by_whom()))


@blueprint.get("/<config>")
def one(config: str) -> Response:
    """Get a configuration."""
    return jsonify(_shown(runner().configs.load(_key(config), asked.tenant(), _environment())))


@blueprint.put("/<config>")
def update(config: str) -> Response:
    """Replace a configuration."""
    given = _body()
    if isinstance(given, dict) and given.get("id", config) != config:
        raise Invalid([Fault("/id", f'Expected "{config}", the id of this configuration, got {given["id"]!r}.')], "configuration")
    saved = runner().configs.save(
        {**given, "id": config} if isinstance(given, dict) else given, tenant=asked.tenant(), environment=_environment(), **asked.by_whom()
    )
    return jsonify(_shown(saved))


@blueprint.delete("/<config>")
def delete(config: str) -> Response:
    """Delete a configuration."""
    runner().configs.delete(_key(config), tenant=asked.tenant(), environment=_environment(), **asked.by_whom())
    return jsonify({"id": config, "deleted": True})


@blueprint.get("/<config>/versions")
def versions(config: str) -> Response:
    """List the versions of a configuration."""
    return jsonify({"versions": [_shown(one) for one in runner().configs.versions(_key(config), asked.tenant(), _environment())]})


@blueprint.get("/<config>/diff")
def diff(config: str) -> Response:
    """Compare two versions of a configuration.

    `?from=1&to=2`: what was added, removed and modified.
    """
    older, newer = asked.number("from", 1, 10**9), asked.number("to", 1, 10**9)
    return jsonify({"changes": runner().configs.difference(_key(config), older, newer, tenant=asked.tenant(), environment=_environment())})


@blueprint.post("/<config>/rollback")
def rollback(config: str) -> Response:
    """Roll a configuration back to an older version.

    `{to}`: an older version once more, as the newest.
    """
    to = asked.body().get("to")
    if not isinstance(to, int) or isinstance(to, bool) or not 0 < to < 2**31:
        raise Invalid([Fault("to", "the number of a version is needed")], "rollback")
    return jsonify(
        _shown(runner().configs.roll_back(_key(config), to, tenant=asked.tenant(), environment=_environment(), **asked.by_whom()))
    )
