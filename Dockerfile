# CPU image of `offramp serve`. Not built where it was written: there was no container engine there.
#   docker build -t offramp .
#   docker run --read-only --tmpfs /tmp -p 8001:8001 -p 8002:8002 -v "$PWD/models:/models:ro" offramp
# Audits and settings that are changed live outlast the container on a volume:
#   -v offramp-state:/state -e OFFRAMP_STORE__PATH=/state/offramp.sqlite3
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY common common
COPY compression compression
COPY proto proto
COPY server server
COPY adapters adapters
COPY clients clients
RUN python -m venv /opt/offramp \
 && /opt/offramp/bin/pip install --no-cache-dir -c constraints.txt '.[server,otel,image,text]'

FROM python:3.11-slim
RUN useradd --system --uid 10001 offramp && install -d -o offramp /state
COPY --from=build /opt/offramp /opt/offramp
ENV PATH=/opt/offramp/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER offramp
VOLUME /models
EXPOSE 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8002/readyz')"]
# Reachable from outside the container, hence no management calls without an admin token.
ENTRYPOINT ["offramp", "serve", "--model-repository", "/models", "--host", "0.0.0.0"]
