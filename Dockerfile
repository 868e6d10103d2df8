# One image for every process; docker-compose.yml says which command each runs. Your own workflows: docs/how-to/deploy.md.
ARG PYTHON=3.13.9-slim-trixie

FROM python:${PYTHON} AS build
WORKDIR /src
RUN python -m venv /opt/orchestrator
COPY requirements.txt .
RUN /opt/orchestrator/bin/pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY orchestrator orchestrator
COPY api api
COPY workflows workflows
COPY migrations migrations
RUN /opt/orchestrator/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/orchestrator/bin/pip check

FROM python:${PYTHON}
ENV PATH=/opt/orchestrator/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1
COPY --from=build /opt/orchestrator /opt/orchestrator
COPY deploy/healthy /usr/local/bin/healthy
# Volumes take their owner from what they are laid over.
RUN useradd --no-create-home --shell /usr/sbin/nologin --uid 10001 --user-group orchestrator \
    && install -d -o orchestrator -g orchestrator -m 700 /data /certificates /output
# What is here is found first: your own package `workflows`, and `config/`.
WORKDIR /app
USER 10001:10001
EXPOSE 5003
CMD ["celery", "-A", "orchestrator.app", "worker", "-E"]
