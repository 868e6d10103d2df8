# One image for every process; docker-compose.yml says which command each runs.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
WORKDIR /app

COPY requirements.txt .
RUN pip install --require-hashes -r requirements.txt

COPY pyproject.toml README.md LICENSE ./
COPY orchestrator orchestrator
COPY api api
COPY workflows workflows
COPY migrations migrations
COPY config config
# Volumes take their owner from what they are laid over.
RUN pip install --no-deps --no-build-isolation -e . \
    && useradd --create-home --uid 10001 orchestrator \
    && install -d -o orchestrator -g orchestrator -m 700 /data /certificates /output

USER orchestrator
CMD ["celery", "-A", "orchestrator.app", "worker"]
