# Two images of `offramp serve`: docker/README.md has how to build and run them, and what of that was tried out.
#   docker build -t offramp .
#   docker build -t offramp:gpu --build-arg DEVICE=gpu .
ARG DEVICE=cpu
ARG CPU_IMAGE=python:3.11-slim-bookworm
ARG GPU_IMAGE=nvcr.io/nvidia/pytorch:26.06-py3

FROM ${CPU_IMAGE} AS cpu
# For Inductor, which is often the fastest engine there is on a CPU: `auto` cannot try it without a compiler.
# The newest patch of the pinned Debian release is wanted, whichever it is.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*

# Brings torch, torch-tensorrt, TensorRT and a compiler.
FROM ${GPU_IMAGE} AS gpu

FROM ${DEVICE} AS build
ARG EXTRAS=server,openvino,gpu,otel,image,text
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY common common
COPY compression compression
COPY proto proto
COPY server server
COPY adapters adapters
COPY clients clients
COPY docker docker
RUN sh docker/install.sh /opt/offramp "${EXTRAS}" "${TORCH_INDEX}"

FROM ${DEVICE}
# What is written lies on two volumes, which only this user may write to: workers run the code that is in the cache.
RUN useradd --system --uid 10001 --no-create-home offramp \
 && install --directory --owner=offramp --mode=0700 /state /cache
COPY --from=build /opt/offramp /opt/offramp
COPY docker/ready.py /opt/offramp/ready.py
ENV PATH=/opt/offramp/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/cache \
    ORT_DISABLE_TELEMETRY=1 \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton \
    OFFRAMP_ENGINES__CACHE=/cache/engines \
    OFFRAMP_STORE__PATH=/state/offramp.sqlite3
USER 10001
VOLUME ["/models", "/state", "/cache"]
EXPOSE 8001 8002
STOPSIGNAL SIGTERM
# A first start measures engines, and may compile for minutes.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m CMD ["python", "/opt/offramp/ready.py"]
# Reachable from outside the container, hence no management calls without an admin token.
ENTRYPOINT ["offramp", "serve", "--model-repository", "/models", "--host", "0.0.0.0"]
