# An image that runs jobs: docker build --tag batchinfer:0.1.0 .
#
# On a machine with the NVIDIA Container Toolkit it uses the GPUs (docker run --gpus all ...): the CUDA
# libraries come with the wheels of torch. Where there is no GPU it runs on the CPU; an image for that
# alone is several GB smaller, with the index of torch's CPU wheels in the place of the default:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=... --build-arg TORCH="torch==2.13.0+cpu" .

FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY batchinfer ./batchinfer
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
ARG PIP_EXTRA_INDEX_URL=""
ARG TORCH="torch"
ARG EXTRAS=""

# A first process that passes signals on, so that SIGTERM drains a run instead of being ignored.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends tini \
 && rm -rf /var/lib/apt/lists/*

RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir --constraint /constraints.txt "${TORCH}" "$(ls /wheels/*.whl)${EXTRAS}"

# Nothing in the image belongs to the user that runs: it works with a read-only root, given a scratch
# folder (HOME and TMPDIR) to write to.
RUN groupadd --gid 10001 batchinfer \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin batchinfer
USER 10001:10001
WORKDIR /work
ENV PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

ENTRYPOINT ["tini", "--", "batchinfer"]
CMD ["--help"]
