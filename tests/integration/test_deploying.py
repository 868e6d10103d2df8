"""What the compose file starts that is not ours, as far as it is a script of ours."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import redis

from orchestrator.config.settings import load
from orchestrator.dev.ports import answers, any_free
from orchestrator.dev.servers import redis_program
from tests.stack import until

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("password", ["plain", "all \"of\\ these' % $x # and // @:?&="])
def test_redis_asks_for_a_password_of_any_characters(tmp_path: Path, password: str) -> None:
    (tmp_path / "password").write_text(f"{password}\n")
    port = any_free()
    given = {**os.environ, "REDIS_SERVER": redis_program(), "REDIS_DIR": str(tmp_path), "REDIS_PASSWORD_FILE": str(tmp_path / "password")}
    process = subprocess.Popen(
        ["sh", ROOT / "deploy/redis.sh", "--port", str(port), "--bind", "127.0.0.1"], env=given, stdout=subprocess.DEVNULL
    )
    held = load({"REDIS_URL": f"redis://127.0.0.1:{port}/0", "REDIS_PASSWORD_FILE": str(tmp_path / "password")})
    try:
        until(lambda: answers(port), 10)
        with redis.Redis.from_url(held.redis_url) as client:
            until(lambda: client.ping(), 10)
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("appendonly") == {"appendonly": "yes"}
        with redis.Redis(port=port) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
    finally:
        process.terminate()
        assert process.wait(10) == 0, "the server itself was told, and ended in order"
    assert not answers(port)
