# Two targets: `docker build --target cpu .` and `docker build --target gpu .`. Exported twins are mounted at /models.

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY clients clients
COPY serve serve
COPY export export
COPY protos protos
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm AS base
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin mousetwin
COPY constraints.txt /tmp/constraints.txt
COPY --from=build /wheels /wheels
ENV PYTHONUNBUFFERED=1
EXPOSE 8000 8001
VOLUME /models
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as http; http.build_opener(http.ProxyHandler({})).open('http://127.0.0.1:8000/readyz', timeout=2)"]
CMD ["mousetwin", "serve", "--models", "/models", "--host", "0.0.0.0"]

FROM base AS gpu
# onnxruntime-gpu is not among the constraints: what CI installs has no GPU.
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt "mousetwin[gpu] @ file://$(ls /wheels/mousetwin-*.whl)"
USER 10001
CMD ["mousetwin", "serve", "--models", "/models", "--host", "0.0.0.0", "--device", "cuda"]

FROM base AS cpu
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt "mousetwin[serve] @ file://$(ls /wheels/mousetwin-*.whl)"
USER 10001
