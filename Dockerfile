# A small image that serves on CPU, without torch: the bundle or registry is mounted at /data.
#
#   docker build -t trunkline .
#   docker run -p 8000:8000 -p 8001:8001 -v "$PWD/demo/bundle:/data:ro" -e TRUNKLINE_KEYS="$(cat keys.yaml)" trunkline
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[server]' \
    && find /venv -name __pycache__ -type d -prune -exec rm -rf {} +

FROM python:3.11-slim
COPY --from=build /venv /venv
RUN useradd --create-home --uid 10001 trunkline
USER trunkline
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=2s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
ENTRYPOINT ["trunkline", "serve", "--host", "0.0.0.0"]
CMD ["/data"]
