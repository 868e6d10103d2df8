"""`call: grpc`: a method of a service that a .proto file describes. Needs the `grpc` extra.

The file is compiled when it is first needed; arguments and answers are JSON as protobuf maps it. A method that streams
its answers gives a list; one that streams its requests takes `arguments.requests`, or one request.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import ipaddress
import tempfile
from pathlib import Path
from typing import Any

from orchestrator.net.authentication import authentication
from orchestrator.net.client import TIMEOUT_S
from orchestrator.net.egress import Policy, resolved
from orchestrator.net.problems import Problem
from orchestrator.net.resources import fetched
from orchestrator.steps.call_http import endpoint_of, hidden
from orchestrator.steps.registry import StepContext, executor

STATUS_OF = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "DEADLINE_EXCEEDED": 408,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
}


@executor
class CallGrpc:
    type = "call.grpc"

    def execute(self, context: StepContext) -> Any:
        if importlib.util.find_spec("grpc") is None or importlib.util.find_spec("grpc_tools") is None:
            raise Problem("configuration", "call: grpc needs the grpc extra: pip install 'celery-orchestrator[grpc]'")
        given = context.parameters if isinstance(context.parameters, dict) else {}
        service = given.get("service") or {}
        with hidden(context):
            where, policy = endpoint_of((given.get("proto") or {}).get("endpoint"), context)
            pool = compiled(fetched(where, authentication(policy, context.secrets)))
            return _called(pool, service, str(given.get("method")), given.get("arguments") or {}, context)


@functools.lru_cache(maxsize=64)
def compiled(text: str) -> Any:
    """The descriptors of a .proto file, with those of the well-known types it may import."""
    from google.protobuf import descriptor_pb2, descriptor_pool
    from grpc_tools import _protoc_compiler, protoc

    with tempfile.TemporaryDirectory(prefix="orchestrator-proto-") as folder:
        name = f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.proto"
        (Path(folder) / name).write_text(text)
        out = Path(folder) / "out"
        included = str(Path(protoc.__file__).parent / "_proto")
        arguments = ["protoc", f"-I{folder}", f"-I{included}", "--include_imports", f"--descriptor_set_out={out}", name]
        if _protoc_compiler.run_main([argument.encode() for argument in arguments]) != 0:
            raise Problem("configuration", "the proto file does not compile")
        found = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in found.file:
        pool.Add(file)
    return pool


def _called(pool: Any, service: dict[str, Any], method_name: str, arguments: Any, context: StepContext) -> Any:
    import grpc
    from google.protobuf import json_format, message_factory

    try:
        described = pool.FindServiceByName(str(service.get("name")))
        method = described.methods_by_name[method_name]
    except KeyError:
        raise Problem("configuration", f"the proto file has no method '{method_name}' of a service '{service.get('name')}'") from None
    request_class = message_factory.GetMessageClass(method.input_type)
    answer_class = message_factory.GetMessageClass(method.output_type)

    def request_of(value: Any) -> Any:
        try:
            return json_format.ParseDict(value or {}, request_class())
        except json_format.ParseError as error:
            raise Problem("validation", f"the arguments do not fit {method.input_type.full_name}: {error}") from None

    host, port = str(service.get("host")), int(service.get("port") or 80)
    metadata = [("x-idempotency-key", context.idempotency_key), *_credentials(service.get("authentication"), context)]
    path = f"/{described.full_name}/{method.name}"
    timeout_s = context.deadline_s or TIMEOUT_S
    with grpc.insecure_channel(_address(host, port), options=[("grpc.default_authority", f"{host}:{port}")]) as channel:
        options = {"request_serializer": request_class.SerializeToString, "response_deserializer": answer_class.FromString}
        streams = method.client_streaming
        requests = arguments.get("requests") if streams and isinstance(arguments.get("requests"), list) else [arguments]
        try:
            if streams and method.server_streaming:
                answers = channel.stream_stream(path, **options)((request_of(r) for r in requests), timeout=timeout_s, metadata=metadata)
            elif streams:
                answers = channel.stream_unary(path, **options)((request_of(r) for r in requests), timeout=timeout_s, metadata=metadata)
            elif method.server_streaming:
                answers = channel.unary_stream(path, **options)(request_of(arguments), timeout=timeout_s, metadata=metadata)
            else:
                answers = channel.unary_unary(path, **options)(request_of(arguments), timeout=timeout_s, metadata=metadata)
            if method.server_streaming:
                return [json_format.MessageToDict(answer) for answer in answers]
            return json_format.MessageToDict(answers)
        except grpc.RpcError as error:
            code = error.code().name
            kind = "timeout" if code == "DEADLINE_EXCEEDED" else "communication"
            raise Problem(
                kind,
                f"{path}: {error.details()}",
                status=STATUS_OF.get(code, 500),
                title=code,
                retryable=code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED"),
            ) from error


def _address(host: str, port: int) -> str:
    """Pinned to the address that the egress policy has judged."""
    import httpcore

    try:
        address = resolved(host, port, Policy.of_process())[0]
    except httpcore.ConnectError as error:
        raise Problem("communication", str(error), retryable=True) from None
    return f"[{address}]:{port}" if ipaddress.ip_address(address).version == 6 else f"{address}:{port}"


def _credentials(policy: Any, context: StepContext) -> list[tuple[str, str]]:
    """As HTTP would send them, in the metadata."""
    import httpx

    auth = authentication(policy, context.secrets)
    if auth is None:
        return []
    request = next(auth.sync_auth_flow(httpx.Request("POST", "http://grpc/")))
    return [("authorization", request.headers["Authorization"])] if "Authorization" in request.headers else []
