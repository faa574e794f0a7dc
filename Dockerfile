# One target per kind of process: controller, worker, trainer, flower, mlflow.
#
#     docker build --target controller -t modelyard-controller .
#     docker build --target worker --build-arg TORCH_BACKEND=cu128 -t modelyard-worker .
#
# Dependencies come from requirements/*.lock and are layers of their own, below the code. mlflow, worker and
# trainer are stacked, so that what they share is stored once.

FROM python:3.11-slim AS base
# Bytecode is compiled while building: at run time the root file system may be read-only.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    GIT_PYTHON_REFRESH=quiet \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN groupadd --gid 10001 modelyard \
 && useradd --uid 10001 --gid modelyard --no-create-home --home-dir /tmp modelyard \
 && python -m venv --without-pip /opt/venv


# What installs packages; the other stages mount it, so none of it stays in an image.
FROM base AS installer
RUN pip install --quiet --no-cache-dir --root-user-action=ignore --target /installer uv
COPY scripts/image_packages.py /installer/
COPY workers/pip_config.py /installer/workers/


# The project itself, client and server, as it lies over a virtual environment that has its dependencies.
FROM base AS project
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY cli cli
COPY client client
COPY controller controller
COPY training training
COPY workers workers
RUN pip --python /opt/venv install --quiet --no-cache-dir --no-deps ./client .


FROM base AS controller-packages
RUN --mount=type=bind,from=installer,source=/installer,target=/installer \
    --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=cache,target=/var/cache/uv \
    python /installer/image_packages.py --requirement /requirements/controller.lock

FROM base AS flower-packages
RUN --mount=type=bind,from=installer,source=/installer,target=/installer \
    --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=cache,target=/var/cache/uv \
    python /installer/image_packages.py --requirement /requirements/flower.lock

# The registry needs no torch; the worker's lock only says which versions.
FROM base AS mlflow-packages
RUN --mount=type=bind,from=installer,source=/installer,target=/installer \
    --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=cache,target=/var/cache/uv \
    python /installer/image_packages.py --constraint /requirements/worker.lock mlflow

FROM mlflow-packages AS worker-packages
# cpu, auto, cu128, …; for cpu, a wheel of torch in pip's find-links is taken where there is one.
ARG TORCH_BACKEND=cpu
RUN --mount=type=bind,from=installer,source=/installer,target=/installer \
    --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=cache,target=/var/cache/uv \
    python /installer/image_packages.py --torch-backend "$TORCH_BACKEND" \
        --requirement /requirements/worker.lock

FROM worker-packages AS trainer-packages
ARG TORCH_BACKEND=cpu
RUN --mount=type=bind,from=installer,source=/installer,target=/installer \
    --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=cache,target=/var/cache/uv \
    python /installer/image_packages.py --torch-backend "$TORCH_BACKEND" \
        --requirement /requirements/training.lock


FROM controller-packages AS controller
COPY --from=project /opt/venv /opt/venv
# For the files of POST /batches; a volume mounted here takes over this folder's owner.
RUN install -d -o modelyard -g modelyard /var/lib/modelyard
ENV MODELYARD_HOST=0.0.0.0
USER modelyard
WORKDIR /tmp
EXPOSE 9000
ENTRYPOINT ["modelyard"]
CMD ["serve"]

FROM flower-packages AS flower
COPY --from=project /opt/venv /opt/venv
ENV FLOWER_ADDRESS=0.0.0.0
USER modelyard
WORKDIR /tmp
EXPOSE 5555
ENTRYPOINT ["modelyard"]
CMD ["flower"]

FROM mlflow-packages AS mlflow
# A volume mounted here takes over this folder's owner.
RUN install -d -o modelyard -g modelyard /mlflow
ENV MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
USER modelyard
WORKDIR /mlflow
EXPOSE 5000
ENTRYPOINT ["mlflow"]
CMD ["server", "--host", "0.0.0.0", "--port", "5000", "--workers", "1", \
     "--backend-store-uri", "sqlite:////mlflow/mlruns.db", "--artifacts-destination", "/mlflow/artifacts"]

FROM worker-packages AS worker
ARG TORCH_BACKEND=cpu
# What models need beyond the lock, separated by spaces: "lightgbm xgboost-cpu>=3 psycopg2-binary"
ARG EXTRA_REQUIREMENTS=
RUN --mount=type=bind,from=installer,source=/installer,target=/installer \
    --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=cache,target=/var/cache/uv \
    set -f; [ -z "$EXTRA_REQUIREMENTS" ] || python /installer/image_packages.py --torch-backend "$TORCH_BACKEND" \
        --constraint /requirements/worker.lock $EXTRA_REQUIREMENTS
COPY --from=project /opt/venv /opt/venv
# For environments of models' own; a volume mounted here takes over this folder's owner.
RUN install -d -o modelyard -g modelyard /var/cache/modelyard
ENV MODELYARD_READY_FILE=/tmp/worker.ready \
    MODELYARD_ENVIRONMENTS_DIR=/var/cache/modelyard/environments \
    UV_CACHE_DIR=/var/cache/modelyard/uv \
    UV_PYTHON_INSTALL_DIR=/var/cache/modelyard/python
USER modelyard
WORKDIR /tmp
ENTRYPOINT ["modelyard"]
CMD ["worker"]

FROM trainer-packages AS trainer
COPY --from=project /opt/venv /opt/venv
USER modelyard
WORKDIR /tmp
ENTRYPOINT ["modelyard"]
CMD ["train"]
