"""The API as somebody sees it who opens it in a browser."""

from __future__ import annotations

import pytest

from tests.proofs.system import create_app
from tests.stack import Stack


@pytest.mark.proves(50)
def test_the_root_is_there_and_operations_have_titles_and_groups(stack: Stack) -> None:
    client = create_app(stack.runner).test_client()
    assert client.get("/").status_code == 200
    spec = client.get("/openapi.json").get_json()
    titles = [operation["summary"] for path in spec["paths"].values() for operation in path.values()]
    assert [title for title in titles if len(title.split()) < 2] == []
    assert len({tag["name"] for tag in spec.get("tags", [])}) >= 10
