# The worker's image, for CPUs. Build it from the repository's root:
#
#     docker build -t wuwan .
#
# Behind a proxy or a private index, pass what pip needs: --build-arg PIP_INDEX_URL=…, or
# --build-arg BASE=… for a base image of your own that has Python 3.11, its pip and your CA bundle.
#
# Written for the legacy builder too (docker-py's images.build speaks to that one): no RUN --mount,
# no heredoc, no COPY --chmod.
ARG BASE=python:3.11-slim

# --- The dependencies, rebuilt only when the pins change.
FROM ${BASE} AS dependencies
# pip reads these from its environment. They reach this stage only, never the final image.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_CERT
ARG PIP_DEFAULT_TIMEOUT
COPY image/requirements-cpu.txt /tmp/requirements.txt
# --no-deps: the file names everything that is needed. grep drops what only openvino's converter imports.
# pip is the base's own and stays outside of the environment, which therefore holds nothing but the pins.
RUN python3 -m venv --without-pip /opt/wuwan \
    && grep -v '^openvino-telemetry' /tmp/requirements.txt > /tmp/pins.txt \
    && python3 -m pip --python /opt/wuwan/bin/python install \
        --no-cache-dir --no-compile --no-deps --disable-pip-version-check -r /tmp/pins.txt
# openvino's wheel carries every device and every model format: 80 of its 178 MB do nothing for ONNX and IR
# on a CPU. Its converter (tools) is an optional import of openvino itself and costs 70 ms at each start.
RUN cd /opt/wuwan/lib/python3*/site-packages \
    && rm -rf openvino/include openvino/cmake openvino/tools openvino/libs/cache.json \
        openvino/libs/libopenvino_intel_gpu_plugin.so openvino/libs/libopenvino_intel_npu_plugin.so \
        openvino/libs/libopenvino_tensorflow_frontend.so* openvino/libs/libopenvino_tensorflow_lite_frontend.so* \
        openvino/libs/libopenvino_pytorch_frontend.so* openvino/libs/libopenvino_paddle_frontend.so* \
        openvino/libs/libopenvino_jax_frontend.so* openvino/libs/libopenvino_gguf_frontend.so* \
    && find numpy -type d -name tests -prune -exec rm -rf {} + \
    && find . -name '*.pyi' -delete
# The container's file system is read-only, so Python cannot cache bytecode there: compile all of it now.
# unchecked-hash: nobody edits these files, so no start has to look at the sources.
RUN /opt/wuwan/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/wuwan/lib \
    && /opt/wuwan/bin/python -c "import msgpack, numpy, openvino, PIL.Image, pillow_heif; \
from openvino.frontend import FrontEndManager; \
assert 'CPU' in openvino.Core().available_devices; \
assert 'onnx' in FrontEndManager().get_available_front_ends()"

# --- The worker: a small layer, so that a change of ours costs megabytes and not hundreds.
FROM dependencies AS worker
COPY image/wuwan_worker /app/wuwan_worker
COPY image/推理.py /app/推理.py
# A build context may bring the host's bytecode along, and, from a checkout made under umask 077, files that
# the worker's user cannot read.
RUN find /app -name __pycache__ -prune -exec rm -rf {} + \
    && /opt/wuwan/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /app/wuwan_worker \
    && PYTHONPATH=/app WUWAN_COMPILED=/app/compiled /opt/wuwan/bin/python -m wuwan_worker.precompile \
    && chmod -R a+rX /app

# --- The image.
FROM ${BASE}
# A base may come without the standard library's bytecode (the official Python images delete it), and
# compiling what the worker imports takes 145 ms, anew at each start.
RUN groupadd --gid 10001 wuwan \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /app --shell /usr/sbin/nologin wuwan \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash \
        -x '/(site-packages|dist-packages|test|tests|idlelib|lib2to3|tkinter|turtledemo|ensurepip|pydoc_data|distutils)/' \
        "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
ENV LANG=C.UTF-8 \
    PATH=/opt/wuwan/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    WUWAN_COMPILED=/app/compiled
COPY --from=dependencies /opt/wuwan /opt/wuwan
COPY --from=worker /app /app
WORKDIR /app
# By number, so that a cluster's "must not run as root" rule can see it.
USER 10001:10001
CMD ["python", "-m", "wuwan_worker"]
ARG VERSION=0.0.0
LABEL org.opencontainers.image.title="wuwan" \
      org.opencontainers.image.description="Tags photos with Chinese labels: the wuwan worker, CPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      io.wuwan.variant="cpu"
