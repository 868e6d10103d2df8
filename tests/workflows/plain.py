"""A function without a decorator, for the `python` step."""


def double(n: int) -> dict[str, int]:
    return {"doubled": 2 * n}
